"""The trainers that ``benchmarks/learner.py`` compares, each a process that takes a step for every line it is given.

python -m benchmarks.learner_steps parl|trl|torch FOLDER RANKS PORT RANK MICRO_TOKENS
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

SEED, TEMPERATURE, LR, CLIP = 0, 1.0, 1e-5, 1.0


def given(folder: Path) -> list[dict[str, np.ndarray]]:
    """Tokens [T], mask [T] and advantage of each row."""
    stored = np.load(folder / "rows.npz")
    count = len({name.split("/")[0] for name in stored.files})
    return [{key: stored[f"{i}/{key}"] for key in ("tokens", "mask", "advantage")} for i in range(count)]


def answer(**values: float) -> None:
    """One line to the parent."""
    print(json.dumps(values), file=OUT, flush=True)


def peak_gib() -> float:
    """Largest resident set of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Stopwatch:
    """Seconds by part of a step."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}

    def of(self, name: str, call: Callable) -> Callable:
        """``call``, with its time added to ``name``."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            out = call(*args, **kwargs)
            self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - began
            return out

        return timed

    def step(self, call: Callable[[], Any]) -> None:
        """Answer with the time of ``call`` and of its parts; the rest is ``other``."""
        self.parts = {}
        began, used = time.perf_counter(), time.process_time()
        call()
        whole = time.perf_counter() - began
        answer(step=whole, cpu=time.process_time() - used, other=whole - sum(self.parts.values()), **self.parts)


def serve(watch: Stopwatch, step: Callable[[], Any], end: Callable[[], dict[str, float]]) -> None:
    """Take steps until the parent says end."""
    for line in sys.stdin:
        if line.strip() == "end":
            peak = peak_gib()
            answer(peak_gib=peak, **end())
            return
        if line.strip() == "profile":
            answer(**profile(step))
        else:
            watch.step(step)


def profile(step: Callable[[], Any]) -> dict[str, float]:
    """Shares of a step's CPU time by operator, largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        step()
    times = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    whole = sum(times.values())
    return {name: times[name] / whole for name in sorted(times, key=lambda name: -times[name])[:16]}


def parl(folder: Path, ranks: int, port: int, rank: int, micro_tokens: int) -> None:
    """The learner as used in a run, without Ray."""
    from model.kimi.family import Kimi
    from model.policy_files import load_policy
    from parl.learn.config import OptimizerConfig
    from parl.learn.group import deal_rows
    from parl.learn.learner import Learner
    from parl.learn.objective.grpo import Grpo
    from parl.learn.rows import Row, denominator
    from rollouts.engine.base import Update
    from rollouts.engine.embedded.engine import EmbeddedEngine

    weights, config, _, _ = load_policy(folder / "starter", Kimi())
    learner = Learner(config, OptimizerConfig(grad_clip=CLIP), seed=SEED, rank=rank, ranks=ranks, port=port)
    learner.load_weights(weights)
    rows = []
    for number, row in enumerate(given(folder)):
        rows.append(
            Row(
                key=(str(number), 0, "0"),
                tokens=row["tokens"],
                mask=row["mask"],
                logprobs=np.where(row["mask"], np.float32(-0.1), np.float32(0)),
                advantages=np.where(row["mask"], row["advantage"], np.float32(0)),
                routes=recorded_routes(learner.model, row["tokens"]),
            )
        )
    n = float(denominator(rows))
    mine = deal_rows(rows, ranks)[rank]
    watch = Stopwatch()
    learner.engine.forward = watch.of("forward", learner.engine.forward)
    learner.engine.backward = watch.of("backward", learner.engine.backward)
    learner.engine.step = watch.of("optimizer", learner.engine.step)
    settings = {"denominator": n, "temperature": TEMPERATURE, "micro_tokens": micro_tokens, "lr_scale": 0.01}

    def end() -> dict[str, float]:
        engine, times = EmbeddedEngine(config, pages=64), []
        for version in range(5):
            began = time.perf_counter()
            new = learner.weights()
            asyncio.run(engine.update(Update(version=version, weights=new)))
            times.append(time.perf_counter() - began)
        return {"sync_ms": 1000 * sorted(times)[2], "sync_bytes": float(sum(a.nbytes for a in new.values()))}

    serve(watch, lambda: learner.policy_step(mine, Grpo(), **settings), end)


@torch.no_grad()
def recorded_routes(model: Any, tokens: np.ndarray) -> np.ndarray:
    """The experts that ``model`` chooses for ``tokens``, int16 [T, L, K], as an engine records them."""
    found: list[torch.Tensor] = []
    hooks = [router.register_forward_hook(lambda _, __, out: found.append(out.ids)) for router in model.routers()]
    model.hidden(torch.from_numpy(tokens.astype(np.int64))[None])
    for hook in hooks:
        hook.remove()
    return torch.stack(found, dim=1).to(torch.int16).numpy()


def plain(folder: Path, micro_tokens: int) -> None:
    """What a careful user writes: rows by length, padded to the longest of a micro-batch, logits at trained positions.

    AdamW on everything, experts chosen live.
    """
    from model.kimi.family import Kimi
    from model.kimi.transformer import Transformer
    from model.policy_files import load_policy

    weights, config, _, _ = load_policy(folder / "starter", Kimi())
    torch.set_num_threads(1)
    model = Transformer(config).train()
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
    optimizer, rows, groups = torch.optim.AdamW(model.parameters(), lr=LR), given(folder), [[]]
    for row in sorted(rows, key=lambda row: len(row["tokens"])):
        longest = max(len(r["tokens"]) for r in [*groups[-1], row])
        if groups[-1] and longest * (len(groups[-1]) + 1) > micro_tokens:
            groups.append([])
        groups[-1].append(row)
    n, watch = sum(int(row["mask"].sum()) for row in rows), Stopwatch()

    def loss_of(group: list[dict[str, np.ndarray]]) -> torch.Tensor:
        length = max(len(row["tokens"]) for row in group)
        tokens, mask = torch.zeros(len(group), length, dtype=torch.long), torch.zeros(len(group), length)
        for i, row in enumerate(group):
            tokens[i, : len(row["tokens"])] = torch.from_numpy(row["tokens"].astype(np.int64))
            mask[i, : len(row["tokens"])] = torch.from_numpy(row["mask"])
        trained = mask[:, 1:] > 0
        logits = model.lm_head(model.hidden(tokens)[:, :-1][trained])
        logprobs = torch.log_softmax(logits, -1).gather(1, tokens[:, 1:][trained][:, None])[:, 0]
        ratio = torch.exp(logprobs - logprobs.detach())
        gains = torch.tensor([float(row["advantage"]) for row in group])[:, None].expand_as(trained)[trained]
        return -torch.minimum(ratio * gains, ratio.clamp(0.8, 1.2) * gains).sum() / n

    timed, back, update = watch.of("forward", loss_of), watch.of("backward", torch.Tensor.backward), optimizer.step

    def finish() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        update()
        optimizer.zero_grad()

    done = watch.of("optimizer", finish)

    def step() -> None:
        for group in groups:
            back(timed(group))
        done()

    serve(watch, step, dict)


def trl(folder: Path, micro_tokens: int) -> None:
    """GRPOTrainer's own training loop; each optimiser step waits for the parent."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(1)
    rows = given(folder)
    batch = trl_batch(rows)
    width = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
    at_once = max(d for d in range(1, len(rows) + 1) if len(rows) % d == 0 and d * width <= max(micro_tokens, width))
    passes, watch = len(rows) // at_once, Stopwatch()

    class Given(GRPOTrainer):
        """TRL's trainer, with given completions and rewards."""

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, torch.Tensor]:
            return {name: values.clone() for name, values in batch.items()}

    class Turns(TrainerCallback):
        """Steps on command only."""

        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if sys.stdin.readline().strip() != "step":
                answer(peak_gib=peak_gib())
                OUT.flush()
                os._exit(0)  # nothing of what libraries do at an end
            watch.parts, self.began = {}, time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            whole = time.perf_counter() - self.began
            answer(step=whole, other=whole - sum(watch.parts.values()), **watch.parts)

    model = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)
    settings = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=passes,
        num_generations=4,
        max_completion_length=batch["completion_ids"].shape[1],
        learning_rate=LR,
        max_grad_norm=CLIP,
        max_steps=10_000,
        loss_type="dapo",
        beta=0.0,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_dict({"prompt": [str(i) for i in range(len(rows))]})
    trainer = Given(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=data,
        processing_class=AutoTokenizer.from_pretrained(folder / "hf"),
        callbacks=[Turns()],
    )
    trainer._compute_loss = watch.of("forward", trainer._compute_loss)
    trainer.accelerator.backward = watch.of("backward", trainer.accelerator.backward)
    trainer.create_optimizer()
    assert trainer.optimizer is not None
    trainer.optimizer.step = watch.of("optimizer", trainer.optimizer.step)
    trainer.train()


def trl_batch(rows: list[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
    """Prompts padded on the left, completions on the right; tool results are masked."""
    firsts = [int(np.flatnonzero(row["mask"])[0]) for row in rows]
    prompt, rest = max(firsts), max(len(row["tokens"]) - first for row, first in zip(rows, firsts, strict=True))
    names = {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": rest,
        "completion_mask": rest,
        "tool_mask": rest,
    }
    batch = {name: torch.zeros(len(rows), width, dtype=torch.long) for name, width in names.items()}
    for i, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        tokens, mask = (torch.from_numpy(row[key].astype(np.int64)) for key in ("tokens", "mask"))
        count = len(tokens) - first
        batch["prompt_ids"][i, prompt - first :], batch["prompt_mask"][i, prompt - first :] = tokens[:first], 1
        batch["completion_ids"][i, :count], batch["completion_mask"][i, :count] = tokens[first:], 1
        batch["tool_mask"][i, :count] = mask[first:]
    batch["advantages"] = torch.tensor([float(row["advantage"]) for row in rows])
    batch["num_items_in_batch"] = batch["tool_mask"].sum()
    return batch


if __name__ == "__main__":
    OUT, sys.stdout = sys.stdout, sys.stderr  # libraries print; the parent reads answers only
    NAME, FOLDER, RANKS, PORT, RANK, MICRO = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:7])
    if NAME == "parl":
        parl(FOLDER, RANKS, PORT, RANK, MICRO)
    else:
        {"torch": plain, "trl": trl}[NAME](FOLDER, MICRO)
