"""Adapters: only they learn and are sent, and merged they are the same policy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from tiny import random_weights, tiny_model

from model.decoder import Weights
from model.lora import is_adapters, merged
from parl.learn.config import LoraConfig, OptimizerConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.rows import Row, denominator
from rollouts.config import RolloutsConfig
from rollouts.engine.actor import EngineActor
from rollouts.engine.base import Place, Sampling, Update
from rollouts.engine.built_in import Embedded

CONFIG = tiny_model()
PLACE = Place(pool="policy", number=0, model=CONFIG, rollouts=RolloutsConfig(), tokenizer="")
WEIGHTS = random_weights(CONFIG)
LORA = OptimizerConfig(lr=1e-2, lora=LoraConfig(rank=4, alpha=8.0))
STEP = {"temperature": 1.0, "micro_tokens": 300}


def a_row(number: int, length: int) -> Row:
    rng = np.random.default_rng(number)
    mask = np.arange(length) > 0
    return Row(
        key=("t", number, "0"),
        tokens=rng.integers(0, CONFIG.vocab_size, length).astype(np.int32),
        mask=mask,
        logprobs=np.where(mask, -6.0, 0.0).astype(np.float32),
        advantages=mask.astype(np.float32),
        routes=rng.random((length, 2, 4)).argsort(-1)[..., :2].astype(np.int16),
    )


ROWS = [a_row(number, length) for number, length in enumerate((50, 30, 20))]
WIDE = K25(log_ratio_min=-30, log_ratio_max=30, tau=0.0)


def train(learner: Learner, steps: int) -> list[float]:
    """Mean log-prob of the rows' tokens before each step: every advantage is 1."""
    means = []
    for _ in range(steps):
        found = learner.logprobs(ROWS, **STEP)
        means.append(sum(float(own.sum()) for own in found) / denominator(ROWS))
        learner.policy_step(ROWS, WIDE, denominator=denominator(ROWS), **STEP)
    return means


@pytest.fixture(scope="module")
def shared() -> Learner:
    return Learner(CONFIG, LORA, seed=0)


@pytest.fixture
def learner(shared: Learner) -> Learner:
    shared.load_weights(WEIGHTS)
    shared.optimizer.state.clear()
    return shared


@pytest.fixture(scope="module")
def plain() -> Learner:
    return Learner(CONFIG, OptimizerConfig(), seed=0)


def test_fresh_adapters_change_nothing_and_trained_ones_raise_what_paid(learner: Learner, plain: Learner):
    plain.load_weights(WEIGHTS)
    for own, base in zip(learner.logprobs(ROWS, **STEP), plain.logprobs(ROWS, **STEP), strict=True):
        np.testing.assert_array_equal(own, base)
    means = train(learner, 6)
    assert means[-1] > means[0] + 0.1


def test_merged_weights_have_the_log_probs_of_the_adapters(learner: Learner, plain: Learner):
    train(learner, 4)
    whole = merged(WEIGHTS, learner.weights())
    plain.load_weights(whole)
    for own, other in zip(learner.logprobs(ROWS, **STEP), plain.logprobs(ROWS, **STEP), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-4)
    touched = {name for name in WEIGHTS if not np.array_equal(whole[name], WEIGHTS[name])}
    assert touched == {n for n in WEIGHTS if "self_attn" in n and "norm" not in n} | {
        n for n in WEIGHTS if "shared_experts" in n
    }


def test_only_adapters_are_trained_and_sent(learner: Learner):
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    train(learner, 2)
    moved = {name for name, p in learner.model.named_parameters() if not np.array_equal(p.detach(), before[name])}
    assert moved == {name for name in before if name.startswith("lora.")}
    assert len(learner.optimizer.state) == len(moved)
    sent = learner.weights()
    assert is_adapters(sent) and not is_adapters(WEIGHTS)
    assert sum(a.nbytes for a in sent.values()) == sum(4 * before[name].numel() for name in moved)
    assert sum(a.nbytes for a in sent.values()) < 0.2 * sum(a.nbytes for a in WEIGHTS.values())


def test_the_targets_are_those_named():
    only = OptimizerConfig(lora=LoraConfig(rank=2, targets=("shared_experts",)))
    sent = Learner(CONFIG, only, seed=0).weights()
    assert {name.split(".")[4] for name in sent} == {"shared_experts"}


def test_an_engine_merges_adapters_and_samples_with_the_learners_log_probs(learner: Learner):
    train(learner, 3)

    async def generate(weights: Weights, base: Weights | None):
        actor = EngineActor(
            Embedded, Place(pool="policy", number=0, model=CONFIG, rollouts=RolloutsConfig(), tokenizer="")
        )
        assert await actor.update(Update(version=7), weights, base) == 7
        return await actor._engine.generate(
            list(range(20)), Sampling(seed=1, max_new_tokens=30), session="s", deadline_s=60.0
        )

    answer = asyncio.run(generate(learner.weights(), WEIGHTS))
    assert asyncio.run(generate(WEIGHTS, None)).tokens != answer.tokens
    assert answer.routes is not None
    mask = np.arange(20 + len(answer.tokens)) >= 20
    row = Row(
        key=("t", 0, "0"),
        tokens=np.array([*range(20), *answer.tokens], np.int32),
        mask=mask,
        logprobs=np.array([0.0] * 20 + answer.logprobs, np.float32),
        advantages=mask.astype(np.float32),
        routes=np.concatenate([answer.routes, np.full((1, 2, 2), -1, np.int16)]),
    )
    assert np.abs(learner.logprobs([row], **STEP)[0] - row.logprobs).max() < 1e-4


def test_a_saved_learner_continues_bit_for_bit_from_the_base_and_its_adapters(learner: Learner, tmp_path: Path):
    train(learner, 2)
    learner.save(tmp_path, "a")
    means, wanted = train(learner, 2), learner.weights()
    learner.load_weights(WEIGHTS)
    learner.optimizer.state.clear()
    learner.load(tmp_path, "a")
    assert train(learner, 2) == means
    assert all(np.array_equal(array, wanted[name]) for name, array in learner.weights().items())
    size = sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    assert size < 0.9 * sum(array.nbytes for array in WEIGHTS.values())


def test_adapters_of_another_model_are_refused(learner: Learner):
    other = random_weights(tiny_model(hidden_size=64))
    with pytest.raises(ValueError, match="do not fit this policy"):
        merged(other, learner.weights())


def test_settings_that_exclude_each_other_are_named():
    with pytest.raises(ValidationError, match="qk_clip=100 scales the matrices that lora freezes"):
        OptimizerConfig(lora=LoraConfig(), qk_clip=100.0)
    dense = tiny_model(first_k_dense_replace=3)
    with pytest.raises(ValueError, match="this model has no such layers"):
        Learner(dense, OptimizerConfig(lora=LoraConfig(targets=("shared_experts",))), seed=0)
