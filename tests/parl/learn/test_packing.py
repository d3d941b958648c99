"""Packed rows: no split, order, limit or number of ranks changes the gradient, and rows are independent."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from cut_rows import split_row
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import random_policy, random_weights, tiny_model
from torch import Tensor

from parl.learn.batch import lay, micro_batches
from parl.learn.config import OptimizerConfig
from parl.learn.group import deal_rows
from parl.learn.learner import Learner
from parl.learn.objective.base import Objective
from parl.learn.objective.cispo import Cispo
from parl.learn.objective.gspo import Gspo
from parl.learn.objective.k25 import K25
from parl.learn.rows import Row, denominator

CONFIG = tiny_model()
MASK: Callable = lambda row: row.mask  # noqa: E731
NO_DEADLINE = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def a_row(number: int, length: int) -> Row:
    rng = np.random.default_rng(number)
    mask = rng.random(length) < 0.5
    mask[0], mask[-1] = False, True
    return Row(
        key=("t", number, "0"),
        tokens=rng.integers(0, CONFIG.vocab_size, length).astype(np.int32),
        mask=mask,
        logprobs=np.where(mask, rng.uniform(-8, -5, length), 0).astype(np.float32),
        advantages=np.where(mask, np.float32(rng.uniform(-1, 1)), np.float32(0)),
        routes=rng.random((length, 2, 4)).argsort(-1)[..., :2].astype(np.int16),
    )


ROWS = [a_row(number, length) for number, length in enumerate((60, 33, 33, 20, 9, 2))]


@pytest.fixture(scope="module")
def learner() -> Learner:
    out = Learner(CONFIG, OptimizerConfig(), seed=0)
    out.load_weights(random_weights(CONFIG))
    return out


def gradient(learner: Learner, shares: list[list[Row]], objective: Objective, micro_tokens: int) -> Tensor:
    """The sum over ``shares`` of each rank's gradient, all parameters in one vector."""
    total = torch.zeros((), dtype=torch.float64)
    whole = float(denominator([row for share in shares for row in share]))

    def keep() -> None:
        nonlocal total
        total = total + torch.cat([p.grad.double().flatten() for p in learner.model.parameters()])
        learner.engine.zero_grad()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner.engine, "step", keep)
        for share in shares:
            learner.policy_step(share, objective, denominator=whole, temperature=0.9, micro_tokens=micro_tokens)
    return total


OBJECTIVES = (
    K25(log_ratio_min=-20, log_ratio_max=20),
    Cispo(),
    Gspo(clip_low=0.9, clip_high=20),
)


@settings(max_examples=10, **NO_DEADLINE)
@given(
    cuts=st.lists(st.integers(1, 4), min_size=len(ROWS), max_size=len(ROWS)),
    order=st.randoms(use_true_random=False),
    micro_tokens=st.integers(1, 300),
    ranks=st.integers(1, 4),
    objective=st.sampled_from(OBJECTIVES),
)
def test_cuts_order_limit_and_ranks_leave_the_gradient(learner: Learner, cuts, order, micro_tokens, ranks, objective):
    wanted = gradient(learner, [ROWS], objective, 10_000)
    pieces = (
        ROWS if objective.whole_traces else [p for row, n in zip(ROWS, cuts, strict=True) for p in split_row(row, n)]
    )
    shuffled = order.sample(pieces, len(pieces))
    got = gradient(learner, deal_rows(shuffled, ranks), objective, micro_tokens)
    assert float(wanted.norm()) > 1e-3
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    limit=st.integers(1, 900),
)
def test_micro_batches_hold_every_row_once_and_no_two_would_fit_in_one(lengths: list[int], limit: int):
    rows = [a_row(number, length) for number, length in enumerate(lengths)]
    groups = micro_batches(rows, limit)
    assert sorted(id(row) for group in groups for row in group) == sorted(map(id, rows))
    sizes = [sum(len(row.tokens) for row in group) for group in groups]
    assert all(size <= limit or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    if len(sizes) > 1:
        smallest, second = sorted(sizes)[:2]
        assert smallest + second > limit


@given(lengths=st.lists(st.integers(1, 500), max_size=30), ranks=st.integers(1, 5))
def test_rows_are_dealt_out_whole_and_evenly(lengths: list[int], ranks: int):
    rows = [a_row(number, length) for number, length in enumerate(lengths)]
    shares = deal_rows(rows, ranks)
    assert len(shares) == ranks
    assert sorted(id(row) for share in shares for row in share) == sorted(map(id, rows))
    loads = [sum(len(row.tokens) * (1 + len(row.tokens) / 1500) for row in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths, default=0) * (1 + max(lengths, default=0) / 1500) + 1e-6


def test_a_row_among_others_has_the_log_probs_that_it_has_alone():
    policy = random_policy(CONFIG)
    together = lay(ROWS, MASK)
    with torch.no_grad():
        parts = together.by_row(policy(**together.inputs)[0])
        for row, part in zip(ROWS, parts, strict=True):
            torch.testing.assert_close(part, policy(**lay([row], MASK).inputs)[0], atol=1e-5, rtol=0)


def test_what_stands_in_another_row_changes_nothing():
    policy = random_policy(CONFIG)
    others = [a_row(100 + number, len(row.tokens)) for number, row in enumerate(ROWS)]
    for place in range(len(ROWS)):
        mixed = [
            row if number == place else other for number, (row, other) in enumerate(zip(ROWS, others, strict=True))
        ]
        batches = lay(ROWS, MASK), lay(mixed, MASK)
        with torch.no_grad():
            own, among = (batch.by_row(policy(**batch.inputs)[0])[place] for batch in batches)
        torch.testing.assert_close(own, among, atol=1e-6, rtol=0)


def test_routes_lie_layer_by_layer_and_are_those_of_the_rows():
    routes = lay(ROWS, MASK).routes_BTLK
    assert routes is not None and routes.dtype == torch.int16
    np.testing.assert_array_equal(routes[0].numpy(), np.concatenate([row.routes for row in ROWS]))
    assert all(routes[:, :, layer].flatten(0, 1).is_contiguous() for layer in range(2))
    assert routes[:, :, 1].data_ptr() - routes[:, :, 0].data_ptr() == 2 * routes.shape[1] * routes.shape[3]


def test_the_largest_logits_are_those_of_the_rows_alone():
    policy = random_policy(CONFIG).train()
    policy.collect_logits = True
    attention = [block.self_attn for block in policy.blocks()]

    def largest(rows: list[Row]) -> Tensor:
        for block in attention:
            block.max_logit_H = None
        policy(**lay(rows, MASK).inputs)
        return torch.stack([block.max_logit_H for block in attention if block.max_logit_H is not None])

    alone = torch.stack([largest([row]) for row in ROWS]).amax(0)
    torch.testing.assert_close(largest(ROWS), alone, atol=1e-5, rtol=1e-5)


def test_the_first_token_of_a_later_row_cannot_be_trained():
    policy, batch = random_policy(CONFIG), lay(ROWS, MASK)
    mask_BT = torch.from_numpy(np.concatenate([MASK(row) for row in ROWS]))[None]
    mask_BT[0, len(ROWS[0].tokens)] = True
    with pytest.raises(ValueError, match="mask covers position 0"):
        policy(batch.tokens_BT, mask_BT, lengths=batch.lengths)
    with pytest.raises(ValueError, match="mask covers position 0"):
        lay(ROWS, lambda row: MASK(row) | (np.arange(len(row.tokens)) == 0) & (row is ROWS[1]))


def test_a_row_beyond_the_context_is_refused_but_many_short_ones_are_not():
    policy = random_policy(tiny_model(max_position_embeddings=64))
    with torch.no_grad():
        policy(**lay(ROWS, MASK).inputs)
        with pytest.raises(ValueError, match="row of 65 tokens exceeds max_position_embeddings=64"):
            policy(**lay([a_row(0, 65), *ROWS], MASK).inputs)
