"""The learner over decoders of transformers: two ranks that share the policy in every way, against one process alone.

``benchmarks/families.py`` prints its rows after its own. Ranks get different numbers of rows, one of them none at
times, and all their tokens' routes.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.families import VOCAB, Row, policy_of, shape_of, some_routes
from model.decoder import Weights, export_weights
from parl.learn import rows as learning
from parl.learn.config import OptimizerConfig, ParallelConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.process import free_port
from parl.learn.shard import ds_engine

OPTIMIZER = OptimizerConfig(lr=1e-3, muon_lr=3e-3, weight_decay=0.1)
LENGTHS = [([60, 40, 20], [50]), ([50], []), ([], [30, 60, 20])]  # per step: each rank's rows
STEPS = len(LENGTHS)
MICRO_TOKENS = 80
DEADLINE_S = 900.0  # of one family, which takes 30 s on two idle cores
TOLERANCE = 1e-4  # of a weight after the steps, which move it by up to 1e-2


def layouts_of(family: str) -> dict[str, ParallelConfig]:
    """ZeRO's stages, and those with what goes with them; experts split where our kernels compute them."""
    found = {f"ZeRO {zero}": ParallelConfig(zero=zero) for zero in (0, 1, 2, 3)}  # type: ignore[arg-type]
    found["ZeRO 3, recomputed"] = ParallelConfig(zero=3, recompute=True)
    if shape_of(family).routes and family != "gpt_oss":
        found["experts split"] = ParallelConfig(expert_parallel=2)
        found["ZeRO 3, experts split"] = ParallelConfig(zero=3, expert_parallel=2)
    return found


def row_of(family: str, number: int, length: int) -> learning.Row:
    """A row of drawn tokens and routes."""
    draw = np.random.default_rng(number)
    mask = draw.random(length) < 0.5
    mask[0], mask[-1] = False, True
    return learning.Row(
        key=("t", number, "0"),
        tokens=draw.integers(0, VOCAB, length).astype(np.int32),
        mask=mask,
        logprobs=np.where(mask, draw.normal(-4.5, 0.1, length), 0).astype(np.float32),
        advantages=np.where(mask, np.float32(draw.uniform(-1, 1)), np.float32(0)),
        routes=some_routes(family, length, number).numpy() if shape_of(family).routes else None,
    )


def shares(family: str, step: int) -> list[list[learning.Row]]:
    """Each rank's rows."""
    return [
        [row_of(family, 100 * step + 10 * rank + i, length) for i, length in enumerate(own)]
        for rank, own in enumerate(LENGTHS[step])
    ]


def steps(learner: Learner, family: str, rank: int | None, first: int = 0) -> None:
    """Steps from ``first`` on with a rank's rows, or with all."""
    for step in range(first, STEPS):
        own = shares(family, step)
        every = [row for rows in own for row in rows]
        learner.policy_step(
            every if rank is None else own[rank],
            K25(log_ratio_min=-9.0, log_ratio_max=9.0),
            denominator=float(learning.denominator(every)),
            temperature=0.9,
            micro_tokens=MICRO_TOKENS,
        )


def start(family: str) -> Weights:
    """What all begin with."""
    return {name: array.copy() for name, array in export_weights(policy_of(family)).items()}


def single(family: str) -> Weights:
    """The weights after one process has taken the steps."""
    learner = Learner(shape_of(family), OPTIMIZER, seed=0)
    learner.load_weights(start(family))
    steps(learner, family, None)
    return learner.weights()


def work(rank: int, port: int, folder: Path, families: list[str]) -> None:
    """A rank's process, for each family and layout: what it loads, the weights after the steps and, resumed, again."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)  # of collectives that DeepSpeed calls by their old names
    ds_engine.PERSISTENT = 0  # of so small a model ZeRO 3 would keep everything whole
    try:
        for family in families:
            for number, (name, parallel) in enumerate(layouts_of(family).items()):
                place = folder / f"{family}-{number}"
                found: dict[str, Any] = {"layout": name}
                learner = Learner(shape_of(family), OPTIMIZER, seed=0, rank=rank, ranks=2, port=port, parallel=parallel)
                learner.load_weights(start(family))
                found["loaded"] = learner.weights()
                learner.save(place, "start")
                steps(learner, family, rank)
                found["weights"] = learner.weights()
                learner.load(place, "start")
                steps(learner, family, rank)
                found["resumed"] = learner.weights()
                torch.save(found, place / f"{rank}.pt")
                learner.engine.destroy()
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise


def ranks(families: list[str]) -> list[Row]:
    """Rows of all layouts. RuntimeError with a rank's traceback where one fails; ends both at the deadline."""
    with tempfile.TemporaryDirectory() as name:
        folder, spawn, port = Path(name), multiprocessing.get_context("spawn"), free_port()
        processes = [spawn.Process(target=work, args=(rank, port, folder, families), daemon=True) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(DEADLINE_S * len(families))
            process.kill()
        if errors := [path.read_text() for path in sorted(folder.glob("*.error"))]:
            raise RuntimeError("\n".join(errors))
        return [row for family in families for row in _compared(family, folder)]


def _compared(family: str, folder: Path) -> list[Row]:
    given, wanted, rows = start(family), single(family), []
    assert _gap(given, wanted) > 10 * TOLERANCE, "the steps move nothing"
    for number, name in enumerate(layouts_of(family)):
        place = folder / f"{family}-{number}" / "0.pt"
        if not place.exists():
            raise RuntimeError(f"{family}, {name}: no end in time")
        found = torch.load(place, weights_only=False)
        assert found["layout"] == name
        if found["weights"].keys() != wanted.keys():
            raise RuntimeError(f"{family}, {name}: the weights are {found['weights'].keys() ^ wanted.keys()}")
        gap = max(_gap(found["weights"], wanted), _gap(found["resumed"], found["weights"]))
        gap = max(gap, _gap(found["loaded"], given))
        rows.append(Row(family=family, check=name, value=gap, tolerance=TOLERANCE))
    return rows


def _gap(one: Weights, other: Weights) -> float:
    return max(float(np.abs(one[name] - array).max()) for name, array in other.items())
