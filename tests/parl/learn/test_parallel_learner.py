"""Two ranks that split optimiser states, gradients, weights, experts: gradients and curve of one process.

The ranks' tokens go to different experts, ranks make different numbers of passes, and a rank has none at
times: under ZeRO 3 and expert parallelism any of these can hang, so every wait here has a deadline.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parallel_ranks import (
    CONFIG,
    FREE,
    MICRO_TOKENS,
    OPTIMIZER,
    STEPS,
    WEIGHTS,
    both,
    layout_name,
    policy_step,
    run,
    shares,
)

from parl.learn.config import ParallelConfig
from parl.learn.learner import Learner
from parl.learn.shard.parts import PartsReader

pytestmark = pytest.mark.slow
LAYOUTS = [ParallelConfig(zero=zero, expert_parallel=ep) for zero in (0, 1, 2, 3) for ep in (1, 2)]
LAYOUTS += [ParallelConfig(zero=zero, expert_parallel=2, recompute=True) for zero in (0, 3)]
DEADLINE_S = 900.0  # about 90 s of CPU; other processes may take most of it
each_layout = pytest.mark.parametrize("parallel", LAYOUTS, ids=layout_name)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of two processes that run every layout in turn. They are ended at the deadline."""
    folder = tmp_path_factory.mktemp("ranks")
    both(run, folder, LAYOUTS, deadline_s=DEADLINE_S)
    return folder


def single(optimizer: Any) -> Learner:
    learner = Learner(CONFIG, optimizer, seed=0)
    learner.load_weights(WEIGHTS)
    return learner


@pytest.fixture(scope="module")
def wanted_gradients() -> list[tuple[dict[str, torch.Tensor], float]]:
    """Of one process, per step: by name, and the norm."""
    learner = single(FREE)
    found: list[tuple[dict[str, torch.Tensor], float]] = []
    for step in range(3):
        kept: dict[str, torch.Tensor] = {}
        learner.optimizer.step = partial(_keep, learner, kept)  # type: ignore[method-assign]
        rows = [row for own in shares(step) for row in own]
        metrics = policy_step(learner, rows, rows)
        found.append((kept, metrics["grad_norm"]))
    return found


def _keep(learner: Learner, kept: dict[str, torch.Tensor]) -> None:
    """Instead of a step."""
    for name, parameter in learner.model.named_parameters():
        assert parameter.grad is not None
        kept[name] = parameter.grad.clone()
    learner.optimizer._clip(1e9)


@each_layout
def test_the_gradients_are_those_of_one_process(files: Path, wanted_gradients, parallel: ParallelConfig):
    folder = files / layout_name(parallel)
    for step, (wanted, norm) in enumerate(wanted_gradients):
        reader = PartsReader(folder / f"gradient-{step}")
        assert reader.shapes.keys() == {f"gradient/{name}" for name in wanted}
        for name, gradient in wanted.items():
            got = reader.range(f"gradient/{name}", 0, gradient.numel()).view(gradient.shape)
            assert float((got - gradient).norm()) <= 1e-5 * float(gradient.norm()) + 1e-8, name
        if parallel.zero:
            for rank in range(2):
                metrics = torch.load(folder / f"norm-{step}-{rank}.pt")
                assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)


@pytest.fixture(scope="module")
def wanted_curve() -> dict[str, Any]:
    learner = single(OPTIMIZER)
    metrics = []
    for step in range(STEPS):
        rows = [row for own in shares(step) for row in own]
        metrics.append(policy_step(learner, rows, rows))
    rows = [row for own in shares(0) for row in own]
    settings = {"temperature": 0.9, "micro_tokens": MICRO_TOKENS}
    scored = learner.logprobs(rows, **settings)
    weights = learner.weights()
    learner.set_reference(WEIGHTS)
    referred = learner.logprobs(rows, reference=True, **settings)
    return {"metrics": metrics, "weights": weights, "scored": scored, "referred": referred}


def results(folder: Path, parallel: ParallelConfig) -> list[dict[str, Any]]:
    return [torch.load(folder / layout_name(parallel) / f"curve-{rank}.pt", weights_only=False) for rank in range(2)]


@each_layout
def test_twenty_steps_are_those_of_one_process(files: Path, wanted_curve, parallel: ParallelConfig):
    first, second = results(files, parallel)
    for step, wanted in enumerate(wanted_curve["metrics"]):
        one, two = first["metrics"][step], second["metrics"][step]
        assert one["loss"] + two["loss"] == pytest.approx(wanted["loss"], abs=1e-5), step
        assert one["grad_norm"] == two["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4), step
        assert one["max_logit"] == two["max_logit"] == pytest.approx(wanted["max_logit"], rel=1e-4), step
    assert any(metrics["clipped_heads"] for metrics in first["metrics"])
    if parallel.zero or parallel.expert_parallel > 1:
        assert second["weights"] == {}  # one rank puts together what all share
    assert first["weights"].keys() == wanted_curve["weights"].keys()
    for name, array in wanted_curve["weights"].items():
        np.testing.assert_allclose(first["weights"][name], array, atol=2e-4, err_msg=name)


@each_layout
def test_rows_are_scored_alike_by_policy_and_reference(files: Path, wanted_curve, parallel: ParallelConfig):
    found = results(files, parallel)
    for field, limit in (("scored", 1e-4), ("referred", 1e-5)):
        got = [array for part in found for array in part[field]]
        for one, other in zip(got, wanted_curve[field], strict=True):
            np.testing.assert_allclose(one, other, atol=limit)


@each_layout
def test_a_saved_pair_continues_bit_for_bit(files: Path, parallel: ParallelConfig):
    for part in results(files, parallel):
        assert part["again"] == part["metrics"][STEPS // 2 :]
    first, _ = results(files, parallel)
    assert all(np.array_equal(array, first["resumed"][name]) for name, array in first["weights"].items())


@each_layout
def test_a_gradient_that_is_not_finite_is_refused_by_every_rank(files: Path, parallel: ParallelConfig):
    assert [part["refused"] for part in results(files, parallel)] == ["NotFiniteLoss"] * 2
    assert all(part["untouched"] for part in results(files, parallel))


@each_layout
def test_imitation_balances_the_same_load(files: Path, parallel: ParallelConfig):
    first, second = results(files, parallel)
    plain, _ = results(files, LAYOUTS[0])
    name = "layers.1.mlp.gate.e_score_correction_bias"
    np.testing.assert_array_equal(first["balanced"][name], plain["balanced"][name])
    total = [sum(part["text"]["loss"] for part in parts) for parts in ((first, second), results(files, LAYOUTS[0]))]
    assert total[0] == pytest.approx(total[1], rel=1e-4)


def test_another_layout_continues_from_the_same_files(files: Path, tmp_path: Path):
    """One process that shares nothing reads the files of four layouts."""
    learner = single(OPTIMIZER)
    for parallel in LAYOUTS[1:8:2]:
        learner.load(files / layout_name(parallel), "half")
        first, second = results(files, parallel)
        step = STEPS // 2
        rows = [row for own in shares(step) for row in own]
        metrics = policy_step(learner, rows, rows)
        wanted = first["metrics"][step]["loss"] + second["metrics"][step]["loss"]
        assert metrics["loss"] == pytest.approx(wanted, abs=1e-5)
        assert metrics["grad_norm"] == pytest.approx(first["metrics"][step]["grad_norm"], rel=1e-3)
