"""The learner under each objective: its own log-probs, the reference, imitation, split rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from cut_rows import split_row
from tiny import random_weights, tiny_model
from torch import Tensor

from parl.learn.batch import TextRow
from parl.learn.config import OptimizerConfig
from parl.learn.learner import Learner
from parl.learn.objective.base import Objective
from parl.learn.objective.cispo import Cispo
from parl.learn.objective.grpo import Grpo
from parl.learn.objective.gspo import Gspo
from parl.learn.objective.k25 import K25
from parl.learn.objective.loss import policy_loss
from parl.learn.rows import Row, denominator

CONFIG = tiny_model()
WEIGHTS, OTHER = random_weights(CONFIG), random_weights(CONFIG, seed=1)
SETTINGS = {"temperature": 0.9, "micro_tokens": 60}
OBJECTIVES: list[Objective] = [
    K25(kl=0.2),
    Grpo(correction="icepop", kl=0.1),
    Grpo(correction="mis"),
    Gspo(clip_low=0.1, clip_high=0.1),
    Cispo(correction="tis"),
]
each = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{o.name}-{getattr(o, 'correction', 'none')}")


@pytest.fixture(scope="module")
def shared() -> Learner:
    out = Learner(CONFIG, OptimizerConfig(), seed=0)
    out.set_reference(OTHER)
    return out


@pytest.fixture
def learner(shared: Learner) -> Learner:
    shared.load_weights(WEIGHTS)
    shared.optimizer.state.clear()
    return shared


@pytest.fixture
def rows(learner: Learner) -> list[Row]:
    """Rows with log-probs of the learner, its reference, and a slightly different engine."""
    out = []
    for number, length in enumerate((40, 31, 25, 12, 9)):
        rng = np.random.default_rng(number)
        mask = rng.random(length) < 0.5
        mask[0], mask[-3:] = False, (True, False, False)
        row = Row(
            key=("t", number, "0"),
            tokens=rng.integers(0, CONFIG.vocab_size, length).astype(np.int32),
            mask=mask,
            logprobs=np.zeros(length, np.float32),
            advantages=np.where(mask, np.float32(rng.uniform(-1, 1)), np.float32(0)),
            routes=rng.random((length, 2, 4)).argsort(-1)[..., :2].astype(np.int16),
        )
        own = learner.logprobs([row], **SETTINGS)[0]
        noise = np.where(mask, 0.1 * rng.standard_normal(length), 0).astype(np.float32)
        out.append(replace(row, proximal=own, logprobs=own + noise))
    found = learner.logprobs(out, **SETTINGS, reference=True)
    return [replace(row, reference=values) for row, values in zip(out, found, strict=True)]


def gradient(learner: Learner, rows: list[Row], objective: Objective, monkeypatch, **settings) -> Tensor:
    found: list[Tensor] = []

    def keep() -> None:
        found.append(torch.cat([p.grad.double().flatten() for p in learner.model.parameters()]))
        learner.engine.zero_grad()

    with monkeypatch.context() as patch:
        patch.setattr(learner.engine, "step", keep)
        learner.policy_step(rows, objective, **{"denominator": float(denominator(rows)), **SETTINGS, **settings})
    return found[0]


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


def test_log_probs_are_the_models_own_in_the_order_of_the_rows(learner: Learner, rows: list[Row]):
    for reference, field in ((False, "proximal"), (True, "reference")):
        learner.load_weights(OTHER if reference else WEIGHTS)
        for row in rows:
            tokens, mask = torch.from_numpy(row.tokens.astype(np.int64))[None], torch.from_numpy(row.mask)[None]
            own = learner.model(tokens, mask, torch.from_numpy(row.routes)[None], 0.9)[0].detach().numpy()
            np.testing.assert_allclose(getattr(row, field)[row.mask], own, atol=1e-5)
            assert (getattr(row, field)[~row.mask] == 0).all()
    assert learner.model.training
    assert np.abs(rows[0].reference - rows[0].proximal).max() > 0.1


@each
def test_the_gradient_is_the_objectives_own(learner: Learner, rows, monkeypatch, objective: Objective):
    losses = []
    for row in rows:
        tokens, mask = torch.from_numpy(row.tokens.astype(np.int64))[None], torch.from_numpy(row.mask)[None]
        new = learner.model(tokens, mask, torch.from_numpy(row.routes)[None], 0.9)[0][None]
        old, gain, before, goal = (
            torch.from_numpy(values[row.mask])[None]
            for values in (row.logprobs, row.advantages, row.proximal, row.reference)
        )
        extra = {"proximal": before, "reference": goal, "denominator": float(denominator(rows))}
        losses.append(policy_loss(objective, new, old, gain, torch.ones_like(new, dtype=torch.bool), **extra)[0])
    wanted = torch.autograd.grad(torch.stack(losses).sum(), list(learner.model.parameters()))
    got = gradient(learner, rows, objective, monkeypatch)
    assert distance(got, torch.cat([g.double().flatten() for g in wanted])) < 1e-5


@each
def test_cuts_in_rows_change_nothing_or_are_refused(learner: Learner, rows, monkeypatch, objective: Objective):
    cut = [piece for row in rows for piece in split_row(row, 3)]
    if objective.whole_traces:
        with pytest.raises(ValueError, match="weighs whole traces: do not split its rows"):
            gradient(learner, cut, objective, monkeypatch)
    else:
        wanted = gradient(learner, rows, objective, monkeypatch)
        assert distance(gradient(learner, cut, objective, monkeypatch), wanted) < 1e-5


@each
def test_a_rank_without_rows_names_the_same_metrics(learner: Learner, rows, objective: Objective):
    full = learner.policy_step(rows, objective, denominator=float(denominator(rows)), lr_scale=0.0, **SETTINGS)
    none = learner.policy_step([], objective, denominator=1.0, lr_scale=0.0, **SETTINGS)
    assert none.keys() == full.keys() and all(value == 0 for value in none.values())
    assert full["logprob_gap"] > 0.1 and full["entropy"] > 0
    if objective.corrects:
        assert full["ratio"] == pytest.approx(1.0, abs=1e-5)  # learner against learner, before any update
    if objective.kl:
        assert full["reference_kl"] > 0.01


def test_imitation_beside_adds_its_own_gradient_times_its_weight(learner: Learner, rows, monkeypatch):
    texts = [TextRow(tokens=row.tokens, weights=np.where(row.mask, 1.0, 0.5).astype(np.float32)) for row in rows[:3]]
    weight = float(sum(row.weights[1:].sum() for row in texts))
    plain, both = K25(), K25(ptx=0.25)
    alone = gradient(learner, rows, plain, monkeypatch)
    beside = gradient(learner, rows, both, monkeypatch, texts=texts, text_denominator=weight)
    losses = []
    for text in texts:
        tokens, weights = torch.from_numpy(text.tokens.astype(np.int64))[None], torch.from_numpy(text.weights)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[:, 0] = False
        losses.append(-(learner.model(tokens, mask)[0] * weights[1:]).sum() / weight)
    own = torch.autograd.grad(torch.stack(losses).sum(), list(learner.model.parameters()))
    assert distance(beside - alone, 0.25 * torch.cat([g.double().flatten() for g in own])) < 1e-4
    metrics = learner.policy_step(
        rows, both, denominator=float(denominator(rows)), texts=texts, text_denominator=weight, lr_scale=0.0, **SETTINGS
    )
    assert metrics["ptx_loss"] == pytest.approx(float(torch.stack(losses).sum().detach()), rel=1e-5)


def test_what_is_missing_is_named(learner: Learner, rows: list[Row]):
    settings = {"denominator": 9.0, **SETTINGS}
    bare = [replace(row, proximal=None, reference=None) for row in rows]
    with pytest.raises(ValueError, match=r"objective.correction=tis needs the rows' proximal log-probs"):
        learner.policy_step(bare, Cispo(correction="tis"), **settings)
    with pytest.raises(ValueError, match=r"objective.kl=0.1 needs the rows' reference log-probs"):
        learner.policy_step(bare, K25(kl=0.1), **settings)
    fresh = Learner(CONFIG, OptimizerConfig(), seed=0)
    with pytest.raises(ValueError, match="call set_reference first"):
        fresh.logprobs(rows, **SETTINGS, reference=True)
