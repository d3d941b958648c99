"""A learner's step beside TRL's GRPO step and a plain torch loop: same model, same tokens, no generation.

    python benchmarks/learner.py                      # one and two ranks, TRL, torch: a table, and which limits hold
    python benchmarks/learner.py --quick --json rows.json
    python -m pip install --target TRL --no-deps trl accelerate && PYTHONPATH=TRL python benchmarks/learner.py
    python benchmarks/learner.py --model FOLDER       # a model of transformers instead: beside transformers and torch

The model is the quickstart's with its shipped cold start, for TRL exported as transformers' DeepseekV3. Rows are traces
of demonstrations; what agents wrote is trained, advantages are drawn. Every trainer is a process of its own and takes a
step in turn with the others, so that a noisy machine disturbs all alike; figures are medians over steps.

parl   Learner.policy_step, objective grpo: log-probs, entropies, statistics, Muon and AdamW, expert choices replayed
trl    GRPOTrainer.train in float32 with ``loss_type=dapo``, gradient checkpointing off; what generation would have
       returned is given, padded to the longest prompt and the longest completion, as TRL does it
torch  our model, rows by length padded to one another, logits where tokens are trained, the same loss, torch's AdamW

With ``--model`` (``benchmarks/learner_models.py``): parl in bfloat16, on one rank of two threads and on two of one,
with AdamW and with Muon, and in float32; transformers' model with torch's AdamW, under bfloat16 autocast and in
float32. Rows of 1,024 tokens, all trained, and two tasks of six episodes. ``tokens_per_cpu_s`` counts the CPU seconds
of all threads.

tokens_per_s  tokens of the rows, without padding, over the median step
mfu           FLOP of the step over its time and the ceiling of as many threads. FLOP: 3 (forward, 2 in backward) times
              the sum over rows of 2 · parameters that a token passes · T + layers · heads · (query + value width) · T²,
              the head for trained tokens only. The ceiling is a float32 product of 1024 x 1024 matrices
peak_gib      largest resident set of the process (of the larger rank), libraries included
sync_ms       weights out of the learner and into one engine of the same process
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
FIELDS = ("trainer", "model", "ranks", "zero", "ep", "tokens_per_s", "mfu", "peak_gib", "step_ms", "sync_ms")
PARTS = ("forward", "backward", "optimizer", "other")
_DEADLINE_S = 300.0


class Trainer:
    """One or more processes (one per rank) that take a step on command."""

    def __init__(
        self,
        name: str,
        ranks: int,
        folder: Path,
        options: argparse.Namespace,
        module: str = "benchmarks.learner_steps",
        threads: int = 1,
    ) -> None:
        self.name, self.ranks, self.steps, self.parts = name, ranks, [], []
        from parl.learn.process import free_port

        port, environment = free_port(), {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive"}
        environment["PYTHONPATH"] = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
        logs = [(folder / f"{name}-{rank}.log").open("w") for rank in range(ranks)]
        command = [sys.executable, "-m", module, name, str(folder), str(ranks), str(port)]
        self._processes = [
            subprocess.Popen([*command, str(rank), str(options.micro_tokens)], cwd=ROOT, env=environment, text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=logs[rank])
            for rank in range(ranks)
        ]  # fmt: skip
        self.log = folder / f"{name}-0.log"

    def _answers(self, word: str) -> list[dict[str, Any]]:
        """Each process's answer to ``word``; RuntimeError with its log if one has ended."""
        for process in self._processes:
            assert process.stdin
            process.stdin.write(word + "\n")
            process.stdin.flush()
        answers = []
        for process in self._processes:
            line = process.stdout.readline() if process.stdout else ""
            if not line:
                raise RuntimeError(f"{self.name} ended: {self.log.read_text()[-3000:]}")
            answers.append(json.loads(line))
        return answers

    def step(self, count: bool) -> None:
        """One step of all ranks; warm-up steps are not counted."""
        answers = self._answers("step")
        if count:
            slowest = max(answers, key=lambda answer: answer["step"])
            self.steps.append(slowest["step"])
            self.parts.append(slowest)

    def profile(self) -> dict[str, float]:
        """Shares of the first rank's CPU time by operator."""
        return self._answers("profile")[0]

    def end(self) -> dict[str, Any]:
        """The process's own figures; ends it."""
        answers = self._answers("end")
        for process in self._processes:
            process.wait(_DEADLINE_S)
        return answers[0] | {"peak_gib": max(answer["peak_gib"] for answer in answers)}


def prepare(folder: Path, tokens: int) -> dict[str, float]:
    """Rows and the exported model into ``folder``; tokens and FLOP of the step."""
    from benchmarks.demonstrations import demonstration_rows
    from parl.config.load import load_config
    from parl.plan.plan import count
    from parl.serve.export import export

    config = load_config(ROOT / "configs/quickstart.yaml")
    starter = next((ROOT / "configs/starters").iterdir())
    export(starter, folder / "hf")
    (folder / "starter").symlink_to(starter)
    rows, held = [], 0
    for row in demonstration_rows(config, tokens, chunk=8):
        if held >= tokens and len(rows) % 4 == 0:  # TRL wants whole groups
            break
        rows.append(row)
        held += len(row.tokens)
    rng = np.random.default_rng(0)
    arrays = {}
    for number, row in enumerate(rows):
        mask = row.weights == 1
        mask[0] = False
        arrays |= {f"{number}/tokens": row.tokens, f"{number}/mask": mask}
        arrays[f"{number}/advantage"] = np.float32(rng.normal())
    np.savez(folder / "rows.npz", **arrays)  # type: ignore[arg-type]
    c, passed = config.model, count(config.model)
    body, head = passed.active - passed.embedding, passed.embedding
    width = c.num_hidden_layers * c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
    trained = sum(int((row.weights == 1).sum()) for row in rows)
    lengths = [len(row.tokens) for row in rows]
    forward = 2 * body * sum(lengths) + 2 * head * trained + width * sum(t * t for t in lengths)
    print(f"{len(rows)} rows of {min(lengths)} to {max(lengths)} tokens, {sum(lengths)} in all, {trained} trained")
    return {"tokens": sum(lengths), "flop": 3 * forward}


def ceiling() -> float:
    """FLOP a second of a float32 product on one thread, the median of several."""
    import torch

    torch.set_num_threads(1)
    a, b, speeds = torch.randn(1024, 1024), torch.randn(1024, 1024), []
    for _ in range(9):
        began = time.perf_counter()
        a @ b
        speeds.append(2 * 1024**3 / (time.perf_counter() - began))
    return median(speeds)


def table(rows: list[dict[str, Any]], parts: list[dict[str, float]]) -> None:
    """Print ``rows`` and the steps' breakdown."""
    print(f"{'trainer':8}{'ranks':>6}{'tokens/s':>10}{'mfu':>7}{'peak GiB':>10}{'step ms':>9}", end="")
    print(*(f"{part:>10}" for part in PARTS), f"{'sync ms':>9}")
    for row, part in zip(rows, parts, strict=True):
        print(f"{row['trainer']:8}{row['ranks']:6}{row['tokens_per_s']:10.0f}{row['mfu']:7.1%}", end="")
        print(f"{row['peak_gib']:10.2f}{row['step_ms']:9.0f}", end="")
        print(*(f"{1000 * part[name]:10.0f}" if name in part else f"{'':10}" for name in PARTS), end="")
        print(f"{row['sync_ms']:9.1f}" if row["sync_ms"] is not None else "")


def verdict(rows: list[dict[str, Any]], trainers: dict[tuple[str, int], Trainer]) -> None:
    """Print parl's ratios to the others, from consecutive steps."""
    ours = {row["trainer"]: row for row in rows if row["ranks"] == 1}
    for name in ("trl", "torch"):
        if name in ours:
            ratios = [b / a for a, b in zip(trainers["parl", 1].steps, trainers[name, 1].steps, strict=True)]
            less = ours["parl"]["peak_gib"] / ours[name]["peak_gib"]
            print(f"parl takes 1/{median(ratios):.2f} of the time of {name}'s step, {less:.2f} of its memory")
    if ("parl", 2) in trainers:
        pairs = zip(trainers["parl", 1].steps, trainers["parl", 2].steps, strict=True)
        print(f"two ranks: {median([a / b for a, b in pairs]):.2f} times as fast as one")


def compare_models(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of the table for the model in ``options.model``: each kind of rows by itself, steps taken in turn."""
    from benchmarks.learner_models import rows_of
    from model.hf.family import Hf

    shape = Hf().read_shape(options.model)
    wanted = [("parl-bfloat16", 1), ("parl-bfloat16", 2), ("parl-bfloat16_muon", 1), ("parl-float32", 1)]
    wanted += [("transformers-autocast", 1), ("transformers-float32", 1)]
    wanted = [one for one in wanted if not options.only or one[0] in options.only]
    found: list[dict[str, Any]] = []
    for case in options.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "model").symlink_to(options.model.resolve())
            rows = rows_of(case, shape.vocab_size)
            np.savez(
                folder / "rows.npz", **{f"{i}/{key}": value for i, row in enumerate(rows) for key, value in row.items()}
            )
            tokens = sum(len(row["tokens"]) for row in rows)
            print(f"{case}: {len(rows)} rows, {tokens} tokens, {sum(int(r['mask'].sum()) for r in rows)} trained")
            trainers = {
                key: Trainer(
                    *key, folder, options, "benchmarks.learner_models", threads=max(options.threads // key[1], 1)
                )
                for key in wanted
            }
            for number in range((options.steps or 3) + 1):
                for trainer in trainers.values():
                    trainer.step(count=number > 0)
            if options.profile and ("parl-bfloat16", 1) in trainers:
                for operator, share in trainers["parl-bfloat16", 1].profile().items():
                    print(f"{share:6.1%}  {operator}")
            for (trainer, ranks), process in trainers.items():
                step, own = median(process.steps), process.end()
                values = {"trainer": trainer, "model": options.model.name, "rows": case, "ranks": ranks}
                values |= {"tokens_per_s": tokens / step, "peak_gib": own["peak_gib"] * ranks, "step_ms": 1000 * step}
                values["tokens_per_cpu_s"] = tokens / median(part["cpu"] for part in process.parts) / ranks
                parts = {p: 1000 * median([part[p] for part in process.parts]) for p in PARTS if p in process.parts[0]}
                found.append(values | parts)
    return found


def print_models(rows: list[dict[str, Any]]) -> None:
    """A Markdown table."""
    names = ("rows", "trainer", "ranks", "tokens_per_s", "tokens_per_cpu_s", "peak_gib", "step_ms", *PARTS)
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for row in rows:
        cells = [row.get(name, "") for name in names]
        print("| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")


def main() -> None:
    """Take the steps interleaved, print the table, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tokens and steps, under two minutes")
    parser.add_argument("--tokens", type=int, help="of a step")
    parser.add_argument("--steps", type=int, help="that are counted")
    parser.add_argument("--micro-tokens", type=int, default=8192, help="padded tokens of one forward pass")
    parser.add_argument("--only", nargs="*", help="trainers; all of --model at once need 25 GiB")
    parser.add_argument("--model", type=Path, help="folder of a model of transformers")
    parser.add_argument("--threads", type=int, default=2, help="of all ranks of a trainer, with --model")
    parser.add_argument("--rows", nargs="*", default=["long", "episodes"], help="kinds of rows, with --model")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2], help="of parl")
    parser.add_argument("--profile", action="store_true", help="also print where parl's step on one rank goes")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.model:
        print_models(found := compare_models(options))
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        return
    options.only = options.only or ["parl", "torch", "trl"]
    tokens, steps = options.tokens or (6000 if options.quick else 32_000), options.steps or (3 if options.quick else 7)
    from importlib.util import find_spec

    wanted = [(name, 1) for name in options.only if name != "parl"]
    wanted = [("parl", ranks) for ranks in options.ranks if "parl" in options.only] + wanted
    if ("trl", 1) in wanted and not (find_spec("trl") and find_spec("accelerate")):
        wanted.remove(("trl", 1))
        print("trl is left out: pip install --target TRL --no-deps trl accelerate, and PYTHONPATH=TRL")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = prepare(folder, tokens)
        trainers = {key: Trainer(*key, folder, options) for key in wanted}
        for number in range(steps + 1):
            for trainer in trainers.values():
                trainer.step(count=number > 0)
        if options.profile:
            for name, share in trainers["parl", 1].profile().items():
                print(f"{share:6.1%}  {name}")
        speed, rows, parts = ceiling(), [], []
        for (trainer, ranks), process in trainers.items():
            own, step = process.end(), median(process.steps)
            values = {"tokens_per_s": work["tokens"] / step, "mfu": work["flop"] / step / (speed * ranks)}
            values |= {"peak_gib": own["peak_gib"], "step_ms": 1000 * step, "sync_ms": own.get("sync_ms")}
            rows.append({"trainer": trainer, "model": "quickstart", "ranks": ranks, "zero": 0, "ep": 1, **values})
            parts.append({p: median([found[p] for found in process.parts]) for p in PARTS if p in process.parts[0]})
            if "sync_bytes" in own:
                size = own["sync_bytes"]
        print(
            f"ceiling {speed / 1e9:.1f} GFLOP/s a thread; weights {size / 2**20:.1f} MiB"
            if "parl" in options.only
            else ""
        )
    table(rows, parts)
    verdict(rows, trainers)
    if options.json:
        options.json.write_text(json.dumps([{name: row[name] for name in FIELDS} for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
