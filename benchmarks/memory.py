"""Peak memory of the learner against `parl plan`'s count, at several sizes and layouts, on this machine's CPU.

    python benchmarks/memory.py [--sizes 256x4 512x4 768x6] [--json FILE]

For each size (hidden size x layers of a Qwen3-like policy, vocabulary 4096) and layout, the ranks build a learner, get
weights, and take two steps of two micro-batches, each rank a process of its own. Columns: parameters; the largest
resident memory of a rank (VmHWM, the larger of the ranks); the same by `parl.plan.held`, with one constant for a
process that holds nothing; their quotient; and the same without that constant, as growth over the process before it
built the learner. Exit code 1 if a peak is off by more than 10 %.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}

import numpy as np
import torch
import transformers.models.qwen3.modeling_qwen3  # noqa: F401

from model.hf.family import Hf
from model.hf.shape import HfShape
from parl.learn.config import OptimizerConfig, ParallelConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.process import free_port, prepare_process
from parl.learn.rows import Row
from parl.plan.held import PROCESS, held

VOCABULARY, TOKENS, STEPS, ROWS = 4096, 256, 2, 2
WITHIN = 0.10
OPTIMIZER = OptimizerConfig(lr=1e-5, muon_lr=1e-4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How ranks share a policy of ``dtype``."""

    zero: int
    ranks: int
    dtype: str

    @property
    def parallel(self) -> ParallelConfig:
        """As configured."""
        return ParallelConfig(zero=self.zero, recompute=True)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.dtype}, ZeRO {self.zero}, {self.ranks} rank{'s' * (self.ranks > 1)}"


LAYOUTS = (
    Layout(zero=0, ranks=1, dtype="float32"),
    Layout(zero=2, ranks=1, dtype="bfloat16"),
    Layout(zero=3, ranks=2, dtype="bfloat16"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One size and layout; bytes."""

    size: str
    layout: str
    parameters: int
    before: float  # resident before the learner was built
    peak: float
    counted: float  # without the process

    @property
    def quotient(self) -> float:
        """Count over measurement, processes included."""
        return (self.counted + PROCESS) / self.peak


def shape_of(size: str, dtype: str) -> HfShape:
    """A Qwen3 of ``size``."""
    hidden, layers = map(int, size.split("x"))
    tree = {
        "model_type": "qwen3", "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers, "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 128,
        "head_dim": 64, "max_position_embeddings": 1024, "tie_word_embeddings": False,
    }  # fmt: skip
    return HfShape(transformers=tree, dtype=dtype)  # type: ignore[call-arg, arg-type]


def resident() -> dict[str, int]:
    """``VmRSS`` now and ``VmHWM`` at most, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {k: int(v.split()[0]) * 1024 for k, _, v in (line.partition(":") for line in lines) if k[:2] == "Vm"}


def a_row(number: int) -> Row:
    """A row whose second half is trained."""
    draw, mask = np.random.default_rng(number), np.arange(TOKENS) >= TOKENS // 2
    return Row(
        key=("memory", number, "0"),
        tokens=draw.integers(0, VOCABULARY, TOKENS).astype(np.int32),
        mask=mask,
        logprobs=np.where(mask, -8.3, 0).astype(np.float32),
        advantages=np.where(mask, draw.uniform(-1, 1), 0).astype(np.float32),
    )


def rank_of(layout: Layout, shape: HfShape, rank: int, port: int) -> dict[str, float]:
    """What one rank's process held."""
    prepare_process("cpu", threads=1, rank=rank, ranks=layout.ranks, port=port)
    before = resident()["VmRSS"]
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM counts from here
    settings: dict[str, Any] = {"seed": 0, "rank": rank, "ranks": layout.ranks, "port": port, "drawn": False}
    learner = Learner(shape, OPTIMIZER, parallel=layout.parallel, **settings)
    with torch.no_grad():
        for flat in learner._shards._flats:
            flat.tensor.normal_(0, 0.02)
        learner._shards._publish()
    rows = [a_row(rank * ROWS + i) for i in range(ROWS)]
    trained = float(sum(row.trained for row in rows)) * layout.ranks
    for _ in range(STEPS):
        learner.policy_step(rows, K25(log_ratio_min=-30, log_ratio_max=30, tau=0.0), denominator=trained,
                            temperature=1.0, micro_tokens=TOKENS)  # fmt: skip
    return {"before": before, "peak": resident()["VmHWM"]}


def measure(layout: Layout, size: str, place: Path) -> Measured:
    """Fork the ranks, which inherit what is imported, and read what they found. SystemExit if one fails."""
    shape, port, children = shape_of(size, layout.dtype), free_port(), []
    for rank in range(layout.ranks):
        if not (child := os.fork()):
            code = 1
            try:
                (place / f"{rank}.json").write_text(json.dumps(rank_of(layout, shape, rank, port)))
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        children.append(child)
    if any(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children):
        raise SystemExit(f"{size}, {layout}: a rank failed")
    found = [json.loads((place / f"{rank}.json").read_text()) for rank in range(layout.ranks)]
    counted = held(shape, OPTIMIZER, layout.parallel, ranks=layout.ranks, tokens=TOKENS).peak
    return Measured(
        size=size, layout=str(layout), parameters=Hf().parameters(shape), before=max(one["before"] for one in found),
        peak=max(one["peak"] for one in found), counted=counted,
    )  # fmt: skip


def main() -> None:
    """Print the table, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["256x4", "512x4", "768x6"])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print("| policy | layout | parameters | peak | counted | counted / peak | growth | counted |")
    print("|---|---|--:|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as place:
        for layout in LAYOUTS:
            for size in given.sizes:
                one = measure(layout, size, Path(place))
                rows.append(one)
                whole, grown = one.quotient * one.peak, one.peak - one.before
                print(
                    f"| {size} | {layout} | {one.parameters / 1e6:.1f} M | {one.peak / 1e6:,.0f} MB |"
                    f" {whole / 1e6:,.0f} MB | {one.quotient:.2f} | {grown / 1e6:,.0f} MB |"
                    f" {one.counted / 1e6:,.0f} MB |",
                    flush=True,
                )
    if given.json:
        given.json.write_text(json.dumps([asdict(row) | {"quotient": row.quotient} for row in rows], indent=1) + "\n")
    bad = [row for row in rows if abs(row.quotient - 1) > WITHIN]
    print(f"{len(rows) - len(bad)} of {len(rows)} peaks are within {WITHIN:.0%} of the count")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
