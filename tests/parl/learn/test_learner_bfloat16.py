"""A policy in bfloat16: sent unchanged, trained with float32 masters, under every layout of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parallel_ranks import some_rows
from tiny import SHAPE, random_weights

from model.arrays import BFLOAT16, to_numpy, to_tensor
from model.kimi.config import ModelConfig
from parl.learn.config import OptimizerConfig, ParallelConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.rows import denominator
from parl.learn.shard.learner_state import saved_weights


class Short(ModelConfig):
    """The tiny policy in bfloat16."""

    @property
    def weights_dtype(self) -> str:
        return "bfloat16"


LONG, SHORT = ModelConfig(**SHAPE), Short(**SHAPE)
WEIGHTS = random_weights(LONG)
ROUNDED = {name: to_numpy(to_tensor(array).bfloat16().float()) for name, array in WEIGHTS.items()}
OPTIMIZER = OptimizerConfig(lr=1e-3, muon_lr=3e-3)
ROWS = some_rows([90, 60, 40], [[0, 1], [1, 2], [2, 3]])
WIDE = K25(log_ratio_min=-30, log_ratio_max=30, tau=0.0)


def learner(
    shape: ModelConfig = SHORT, optimizer: OptimizerConfig = OPTIMIZER, zero: int = 0, weights=WEIGHTS
) -> Learner:
    made = Learner(shape, optimizer, seed=0, parallel=ParallelConfig(zero=zero))  # type: ignore[arg-type]
    made.load_weights(weights)
    return made


def step(learner: Learner) -> dict[str, float]:
    return learner.policy_step(ROWS, WIDE, denominator=denominator(ROWS), temperature=1.0, micro_tokens=100)


def test_weights_are_sent_in_bfloat16_and_a_checkpoint_has_the_masters(tmp_path: Path):
    first = learner()
    step(first)
    sent, inside = first.weights(), first.model.state_dict()
    biases = {name for name in sent if name.endswith("e_score_correction_bias")}
    assert {name for name, array in sent.items() if array.dtype != BFLOAT16} == biases
    assert all(torch.equal(to_tensor(array), inside[name]) for name, array in sent.items())
    first.save(tmp_path, "a")
    saved, masters = saved_weights(tmp_path / "a", "bfloat16"), saved_weights(tmp_path / "a")
    assert all(np.array_equal(saved[name], array) and saved[name].dtype == array.dtype for name, array in sent.items())
    assert any((masters[name] != array.astype(np.float32)).any() for name, array in sent.items())
    step(first)
    wanted = first.weights()
    second = learner()
    second.load(tmp_path, "a")
    step(second)
    assert all(np.array_equal(array, wanted[name]) for name, array in second.weights().items())


@pytest.mark.parametrize("zero", [0, 3])
def test_a_step_is_about_that_of_float32(zero: int):
    short, long = learner(zero=zero, weights=ROUNDED), learner(LONG, weights=ROUNDED)
    metrics, wanted = step(short), step(long)
    assert {p.dtype for p in short.model.parameters()} == {torch.bfloat16}
    assert short.model.rope_cos.dtype == short.model.routers()[0].e_score_correction_bias.dtype == torch.float32
    assert metrics["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=0.02)
    assert metrics["loss"] == pytest.approx(wanted["loss"], rel=0.02)
    moved = [to_tensor(array).float() - ROUNDED[name] for name, array in sorted(short.weights().items())]
    along = [to_tensor(array) - ROUNDED[name] for name, array in sorted(long.weights().items())]
    one, other = (torch.cat([part.flatten() for part in parts]) for parts in (moved, along))
    assert torch.cosine_similarity(one, other, dim=0) > 0.8  # what is served is rounded again


@pytest.mark.parametrize("zero", [0, 3])
def test_steps_of_less_than_half_a_unit_add_up_in_the_masters(zero: int):
    short = learner(optimizer=OptimizerConfig(lr=1e-6, muon_lr=1e-6), zero=zero)
    flats = [flat.tensor.detach() for flat in short._shards._flats]
    before = [flat.clone() for flat in flats]
    for _ in range(3):
        step(short)
    assert all(2e-6 < float((flat - old).abs().max()) < 1e-5 for flat, old in zip(flats, before, strict=True))
