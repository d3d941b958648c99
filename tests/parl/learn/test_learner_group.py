"""Two ranks take the same step as one, however the rows are distributed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import random_weights, tiny_model

from parl.learn.batch import TextRow
from parl.learn.config import OptimizerConfig
from parl.learn.group import LearnerGroup
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.rows import Row, denominator
from parl.learn.shard.optimizer import NotFiniteLoss

pytestmark = pytest.mark.slow
CONFIG = tiny_model()
WEIGHTS = random_weights(CONFIG)
MICRO_TOKENS = 200


@pytest.fixture(scope="module")
def pair(one_ray: None) -> Iterator[LearnerGroup]:
    settings = {"seed": 0, "ranks": 2, "threads": 1, "micro_tokens": MICRO_TOKENS, "deadline_s": 60.0}
    group = LearnerGroup(CONFIG, OptimizerConfig(), **settings)
    yield group
    group.close()


@pytest.fixture(scope="module")
def single() -> Learner:
    return Learner(CONFIG, OptimizerConfig(), seed=0)


@pytest.fixture(autouse=True)
def same_start(pair: LearnerGroup, single: Learner, tmp_path: Path) -> None:
    """Both at the same weights, with empty optimisers."""
    single.load_weights(WEIGHTS)
    single.optimizer.state.clear()
    single.save(tmp_path, "start")
    pair.load(tmp_path, "start")


def some_rows(model: torch.nn.Module, lengths: list[int]) -> list[Row]:
    rows = []
    for number, length in enumerate(lengths):
        rng = np.random.default_rng(number)
        mask = rng.random(length) < 0.5
        mask[0], mask[-1] = False, True
        tokens = rng.integers(0, CONFIG.vocab_size, length).astype(np.int32)
        logprobs = np.zeros(length, np.float32)
        with torch.no_grad():
            ids = torch.from_numpy(tokens.astype(np.int64))[None]
            logprobs[mask] = model(ids, torch.from_numpy(mask)[None])[0].numpy()
        advantages = np.where(mask, np.float32(rng.uniform(-1, 1)), np.float32(0))
        routes = np.full((length, 2, 2), -1, np.int16)
        rows.append(
            Row(
                key=("t", number, "0"),
                tokens=tokens,
                mask=mask,
                logprobs=logprobs,
                advantages=advantages,
                routes=routes,
            )
        )
    return rows


def alike(pair: LearnerGroup, single: Learner) -> None:
    theirs = pair.weights()
    for name, array in single.weights().items():
        np.testing.assert_allclose(theirs[name], array, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("lengths", [[90, 70, 40, 31, 30, 12, 7], [50]], ids=["seven rows", "a rank without rows"])
def test_policy_steps_are_the_same(pair: LearnerGroup, single: Learner, lengths: list[int]):
    rows = some_rows(single.model, lengths)
    for _ in range(2):
        ours = single.policy_step(
            rows,
            K25(),
            denominator=denominator(rows),
            temperature=0.9,
            micro_tokens=MICRO_TOKENS,
            lr_scale=0.5,
        )
        theirs = pair.policy_step(rows, K25(), temperature=0.9, lr_scale=0.5)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    alike(pair, single)


def test_imitation_steps_are_the_same_and_balance_the_same_load(pair: LearnerGroup, single: Learner):
    rows = [
        TextRow(tokens=row.tokens, weights=np.where(row.mask, np.float32(1), np.float32(0.1)))
        for row in some_rows(single.model, [60, 45, 20])
    ]
    total = float(sum(row.weights.sum() for row in rows))
    ours = single.text_step(rows, denominator=total, micro_tokens=MICRO_TOKENS, lr_scale=1.0)
    theirs = pair.text_step(rows, lr_scale=1.0)
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    assert theirs["accuracy"] == pytest.approx(ours["right"] / ours["acted"])
    alike(pair, single)


def test_a_pair_continues_from_its_checkpoint_bit_for_bit(pair: LearnerGroup, single: Learner, tmp_path: Path):
    rows = some_rows(single.model, [50, 40, 30])

    def step() -> dict[str, float]:
        return pair.policy_step(rows, K25(), temperature=1.0, lr_scale=1.0)

    step()
    pair.save(tmp_path, "learner")
    metrics, wanted = step(), pair.weights()
    pair.load_weights(WEIGHTS)
    pair.load(tmp_path, "learner")
    assert step() == metrics
    assert all(np.array_equal(array, wanted[name]) for name, array in pair.weights().items())


def test_one_rank_continues_what_two_have_saved_and_two_what_one_has(
    pair: LearnerGroup, single: Learner, tmp_path: Path
):
    rows = some_rows(single.model, [50, 40, 30])

    def step() -> None:
        """Of both: the same rows, the same learning rate."""
        pair.policy_step(rows, K25(), temperature=1.0, lr_scale=1.0)
        single.policy_step(rows, K25(), denominator=denominator(rows), temperature=1.0, micro_tokens=MICRO_TOKENS)

    step()
    pair.save(tmp_path, "two")
    single.load(tmp_path, "two")
    theirs = pair.weights()
    assert all(np.array_equal(array, theirs[name]) for name, array in single.weights().items())
    step()
    alike(pair, single)
    single.save(tmp_path, "one")
    pair.load(tmp_path, "one")
    theirs = pair.weights()
    assert all(np.array_equal(array, theirs[name]) for name, array in single.weights().items())
    step()
    alike(pair, single)


def test_a_save_goes_on_while_the_ranks_step(pair: LearnerGroup, single: Learner, tmp_path: Path):
    rows, saved = some_rows(single.model, [50, 40, 30]), pair.weights()
    pair.snapshot()
    pair.policy_step(rows, K25(), temperature=1.0, lr_scale=1.0)
    parts = pair.write_snapshot(tmp_path)
    assert [part.file for part in parts] == ["part-00000.safetensors", "part-00001.safetensors"]
    single.load(tmp_path.parent, tmp_path.name)
    assert all(np.array_equal(array, saved[name]) for name, array in single.weights().items())


def test_what_one_rank_refuses_is_heard_at_once(pair: LearnerGroup, single: Learner):
    """Last: the other rank is left waiting for its peer, and the run would end."""
    rows = some_rows(single.model, [50, 40])
    broken = [rows[0], replace(rows[1], advantages=rows[1].advantages * np.float32(np.nan))]
    began = time.monotonic()
    with pytest.raises(NotFiniteLoss):
        pair.policy_step(broken, K25(), temperature=1.0, lr_scale=1.0)
    assert time.monotonic() - began < 30.0  # not its deadline of 60 s
