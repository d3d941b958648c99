"""The trainers that ``benchmarks/learner.py --model`` compares: a process each, which takes a step when told to.

python -m benchmarks.learner_models NAME FOLDER RANKS PORT RANK MICRO_TOKENS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learner_steps import CLIP, LR, SEED, TEMPERATURE, Stopwatch, given, serve


def rows_of(case: str, vocabulary: int) -> list[dict[str, Any]]:
    """``long``: 4 rows of 1,024 tokens, all trained. ``episodes``: 2 tasks of 6 episodes of an orchestrator.

    Numbers as traces of SmolLM2 in a table world have them: 240 tokens of prompt, 150 of them the same for all tasks,
    about 530 tokens in all, of which 38 % are trained.
    """
    rng = np.random.default_rng(0)

    def drawn(count: int) -> np.ndarray:
        return rng.integers(100, vocabulary, count).astype(np.int32)

    if case == "long":
        return [{"tokens": drawn(1024), "mask": np.arange(1024) > 0, "advantage": 1.0} for _ in range(4)]
    rows, system = [], drawn(150)
    for length in (620, 440):
        prompt = np.concatenate([system, drawn(90)])
        for _ in range(6):
            rest = drawn(length - 240 + int(rng.integers(-60, 60)))
            mask = np.zeros(240 + len(rest), bool)
            mask[240:] = np.arange(len(rest)) // 20 % 10 < 7  # turns, and what was read between them
            rows.append({"tokens": np.concatenate([prompt, rest]), "mask": mask, "advantage": float(rng.normal())})
    return rows


def parl(folder: Path, dtype: str, ranks: int, port: int, rank: int, micro_tokens: int) -> None:
    """The learner as a run uses it, without Ray: objective grpo, statistics; AdamW on everything, as recipes over given
    weights have it, or Muon (``dtype`` ends in ``_muon``).
    """
    from model.hf.family import Hf
    from parl.learn.config import OptimizerConfig
    from parl.learn.group import deal_rows
    from parl.learn.learner import Learner
    from parl.learn.objective.grpo import Grpo
    from parl.learn.rows import Row, denominator

    family = Hf()
    dtype, _, muon = dtype.partition("_")
    shape = family.read_shape(folder / "model").model_copy(update={"dtype": dtype})
    threads = int(os.environ["OMP_NUM_THREADS"])
    optimizer = OptimizerConfig(grad_clip=CLIP) if muon else OptimizerConfig(grad_clip=CLIP, muon_lr=None)
    learner = Learner(shape, optimizer, seed=SEED, threads=threads, rank=rank, ranks=ranks, port=port)
    rows = [
        Row(
            key=(str(number), 0, "0"),
            tokens=row["tokens"],
            mask=row["mask"],
            logprobs=np.where(row["mask"], np.float32(-0.1), np.float32(0)),
            advantages=np.where(row["mask"], np.float32(row["advantage"]), np.float32(0)),
        )
        for number, row in enumerate(given(folder))
    ]
    mine, watch = deal_rows(rows, ranks)[rank], Stopwatch()
    learner.engine.forward = watch.of("forward", learner.engine.forward)
    learner.engine.backward = watch.of("backward", learner.engine.backward)
    learner.engine.step = watch.of("optimizer", learner.engine.step)
    settings: dict[str, Any] = {"temperature": TEMPERATURE, "micro_tokens": micro_tokens, "lr_scale": 0.01}
    total = float(denominator(rows))
    serve(watch, lambda: learner.policy_step(mine, Grpo(), denominator=total, **settings), dict)


def stock(folder: Path, *, autocast: bool) -> None:
    """transformers' model in float32, one row a pass (nothing is padded), the same loss, torch's AdamW, clipping."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).train()
    optimizer, rows, watch = torch.optim.AdamW(model.parameters(), lr=LR), given(folder), Stopwatch()
    total = sum(int(row["mask"].sum()) for row in rows)

    def loss_of(row: dict[str, np.ndarray]) -> torch.Tensor:
        tokens, mask = (torch.from_numpy(row[key].astype(np.int64)) for key in ("tokens", "mask"))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(tokens[None]).logits[0, :-1]
        logprobs = torch.log_softmax(logits.float(), -1).gather(1, tokens[1:, None])[:, 0]
        ratio = torch.exp(logprobs - logprobs.detach())
        gain = float(row["advantage"])
        return -(torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain) * mask[1:]).sum() / total

    timed, back, update = watch.of("forward", loss_of), watch.of("backward", torch.Tensor.backward), optimizer.step

    def finish() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        update()
        optimizer.zero_grad()

    done = watch.of("optimizer", finish)

    def step() -> None:
        for row in rows:
            back(timed(row))
        done()

    serve(watch, step, dict)


if __name__ == "__main__":
    import benchmarks.learner_steps as steps

    steps.OUT, sys.stdout = sys.stdout, sys.stderr  # libraries print; the parent reads answers only
    NAME, FOLDER, RANKS, PORT, RANK, MICRO = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:7])
    owner, _, kind = NAME.partition("-")
    if owner == "parl":
        parl(FOLDER, kind, RANKS, PORT, RANK, MICRO)
    else:
        stock(FOLDER, autocast=kind == "autocast")
