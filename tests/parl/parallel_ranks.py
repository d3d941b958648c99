"""Two processes of ranks, and what one of ``test_parallel_learner`` does: every layout in turn, results in files."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import random_weights, tiny_model

from parl.learn.batch import TextRow
from parl.learn.config import OptimizerConfig, ParallelConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.process import free_port
from parl.learn.rows import Row, denominator
from parl.learn.shard import ds_engine
from parl.learn.shard.parts import write_part

CONFIG = tiny_model()
WEIGHTS = random_weights(CONFIG)
OPTIMIZER = OptimizerConfig(lr=1e-3, muon_lr=3e-3, weight_decay=0.1, qk_clip=6.0)
FREE = OPTIMIZER.model_copy(update={"grad_clip": 1e9})  # no clipping
MICRO_TOKENS = 100
STEPS = 20


def layout_name(parallel: ParallelConfig) -> str:
    """Name of a layout's files."""
    names = f"zero{parallel.zero}-ep{parallel.expert_parallel}"
    return names + ("-recompute" if parallel.recompute else "") + ("-offload" if parallel.offload != "none" else "")


def some_rows(lengths: list[int], experts: list[list[int]], seed: int = 0) -> list[Row]:
    """Rows whose tokens all go to the same experts, given per row."""
    rows = []
    for number, length in enumerate(lengths):
        rng = np.random.default_rng(1000 * seed + number)
        mask = rng.random(length) < 0.5
        mask[0], mask[-1] = False, True
        routes = np.tile(np.array(experts[number], np.int16), (length, CONFIG.num_moe_layers, 1))
        rows.append(
            Row(
                key=("t", number, "0"),
                tokens=rng.integers(0, CONFIG.vocab_size, length).astype(np.int32),
                mask=mask,
                logprobs=np.where(mask, rng.normal(-6.5, 0.1, length), 0).astype(np.float32),
                advantages=np.where(mask, np.float32(rng.uniform(-1, 1)), np.float32(0)),
                routes=routes,
            )
        )
    return rows


# per step: each rank's rows; the first rank's go to other experts than the second's
LENGTHS = [([90, 60, 40], [70]), ([50], []), ([], [30, 80, 20]), ([40, 41], [60, 20])]


def shares(step: int) -> list[list[Row]]:
    """Each rank's rows in ``step``: several micro-batches, one or none; its tokens go to its own experts."""
    lengths = LENGTHS[step % len(LENGTHS)]
    return [
        some_rows(own, [[2 * rank, 2 * rank + 1]] * len(own), seed=2 * step + rank) for rank, own in enumerate(lengths)
    ]


def policy_step(learner: Learner, rows: list[Row], all_rows: list[Row], **changes: Any) -> dict[str, float]:
    """One step of this rank's ``rows`` of ``all_rows``."""
    settings = {
        "denominator": float(denominator(all_rows)),
        "temperature": 0.9,
        "micro_tokens": MICRO_TOKENS,
        **changes,
    }
    objective = K25(log_ratio_min=-9.0, log_ratio_max=9.0)
    return learner.policy_step(rows, objective, **settings)


def run(rank: int, port: int, folder: Path, layouts: list[ParallelConfig]) -> None:
    """The process: all cases under every layout; errors go to ``folder``/``rank``.error."""
    torch.set_num_threads(1)
    ds_engine.PERSISTENT = 0  # of so small a model ZeRO 3 would keep everything whole
    try:
        for parallel in layouts:
            gradients(rank, port, folder / layout_name(parallel), parallel)
            curve(rank, port, folder / layout_name(parallel), parallel)
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise


def learner_of(rank: int, port: int, parallel: ParallelConfig, optimizer: OptimizerConfig = OPTIMIZER) -> Learner:
    """This rank's learner, at the tests' initial weights."""
    learner = Learner(CONFIG, optimizer, seed=0, rank=rank, ranks=2, port=port, parallel=parallel)
    learner.load_weights(WEIGHTS)
    return learner


def gradients(rank: int, port: int, folder: Path, parallel: ParallelConfig) -> None:
    """The gradient before the optimiser's step, as pieces."""
    learner = learner_of(rank, port, parallel, FREE)
    shards = learner._shards

    def keep() -> None:
        for flat in shards._flats:
            if flat.tensor.grad is not None:
                for span in flat.spans:
                    if shards._writes(flat, span):
                        pieces.extend(shards._piece("gradient", flat.tensor.grad.clone(), flat, span))

    for step in range(3):
        pieces: list = []
        learner.optimizer.step = keep  # type: ignore[method-assign]
        own = shares(step)
        metrics = policy_step(learner, own[rank], own[0] + own[1])
        (folder / f"gradient-{step}").mkdir(parents=True, exist_ok=True)
        write_part(folder / f"gradient-{step}", rank, 2, pieces)
        torch.save(metrics, folder / f"norm-{step}-{rank}.pt")
    learner.engine.destroy()


def curve(rank: int, port: int, folder: Path, parallel: ParallelConfig) -> None:
    """20 steps, saved half way; again from there, to the bit; then weights and scores."""
    folder.mkdir(parents=True, exist_ok=True)
    learner = learner_of(rank, port, parallel)
    metrics = []
    for step in range(STEPS):
        if step == STEPS // 2:
            learner.save(folder, "half")
        own = shares(step)
        metrics.append(policy_step(learner, own[rank], own[0] + own[1]))
    weights = learner.weights()
    scored = learner.logprobs(shares(0)[rank], temperature=0.9, micro_tokens=MICRO_TOKENS)
    learner.load_weights(WEIGHTS)
    learner.load(folder, "half")
    again = []
    for step in range(STEPS // 2, STEPS):
        own = shares(step)
        again.append(policy_step(learner, own[rank], own[0] + own[1]))
    resumed = learner.weights()
    learner.set_reference(WEIGHTS)
    referred = learner.logprobs(shares(0)[rank], temperature=0.9, micro_tokens=MICRO_TOKENS, reference=True)
    texts = [
        TextRow(tokens=row.tokens, weights=np.where(row.mask, np.float32(1), np.float32(0.1))) for row in own[rank]
    ]
    text = learner.text_step(texts, denominator=100.0, micro_tokens=MICRO_TOKENS, lr_scale=1.0)
    balanced = learner.weights()
    if rank == 1:  # what one rank's gradient holds is every rank's
        learner.model.norm.weight.register_hook(lambda gradient: gradient * np.inf)
    refused = refusal(lambda: policy_step(learner, shares(0)[rank], shares(0)[rank]))
    untouched = all(np.array_equal(array, balanced[name]) for name, array in learner.weights().items())
    found = {
        "metrics": metrics,
        "weights": weights,
        "scored": scored,
        "again": again,
        "resumed": resumed,
        "referred": referred,
        "text": text,
        "balanced": balanced,
        "refused": refused,
        "untouched": untouched,
    }
    torch.save(found, folder / f"curve-{rank}.pt")
    learner.engine.destroy()


def refusal(step: Callable[[], object]) -> str:
    """The name of the error that ``step`` raises."""
    try:
        step()
    except FloatingPointError as error:
        return type(error).__name__
    return ""


def both(target: Any, folder: Path, *more: Any, deadline_s: float) -> None:
    """``target(rank, port, folder, *more)`` in two processes, which write their tracebacks to ``RANK.error``."""
    spawn, port = multiprocessing.get_context("spawn"), free_port()
    ranks = [spawn.Process(target=target, args=(rank, port, folder, *more), daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(deadline_s)
    hung = [process for process in ranks if process.is_alive()]
    for process in hung:
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob("*.error"))]
    assert not errors, "\n".join(errors)
    assert not hung, f"no end after {deadline_s:.0f} s"
    assert [process.exitcode for process in ranks] == [0, 0]
