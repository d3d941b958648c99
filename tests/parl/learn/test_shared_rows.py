"""Shared prefixes of rows are computed once, and nothing changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parl.learn.batch import Batch, lay, micro_batches
from parl.learn.rows import Row

pytest.importorskip("transformers", minversion="5.24", reason="the family hf needs transformers")
from benchmarks.families import FAMILIES, VOCAB, policy_of


def a_row(tokens: Sequence[int], routes: np.ndarray | None = None, media: tuple = ()) -> Row:
    length = len(tokens)
    mask = np.arange(length) % 3 == 1
    return Row(
        key=("t", 0, "0"),
        tokens=np.array(tokens, np.int32),
        mask=mask,
        logprobs=np.zeros(length, np.float32),
        advantages=mask.astype(np.float32),
        routes=routes,
        media=media,
    )


def mask(row: Row) -> np.ndarray:
    return row.mask


def positions(batch: Batch) -> np.ndarray:
    return np.concatenate([np.arange(length) for length in batch.lengths])


few = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(st.lists(few, min_size=1, max_size=8), st.integers(1, 40))
def test_every_position_gets_its_own_history_and_nothing_is_computed_twice(tokens: list[list[int]], limit: int):
    rows = [a_row(own) for own in tokens]
    groups = micro_batches(rows, limit, share=True)
    assert sorted(id(row) for group in groups for row in group) == sorted(map(id, rows))
    for group in groups:
        batch = lay(group, mask, share=True)
        history = [tuple(row.tokens[: i + 1].tolist()) for row in group for i in range(len(row.tokens))]
        distinct = len(set(history))
        assert len(group) == 1 or distinct <= limit
        if batch.shared is None:
            assert distinct == len(history)
            continue
        place, first = batch.shared.place_T.numpy(), batch.shared.first_U.numpy()
        assert len(first) == distinct
        assert [history[first[at]] for at in place] == history
        begins = np.cumsum([0, *batch.lengths[:-1]])
        for begin, length, own in zip(begins, batch.lengths, batch.shared.own, strict=True):
            mine = set(range(begin, begin + length)) & set(first.tolist())
            assert mine == set(range(begin + own, begin + length))


def test_other_routes_and_pictures_are_another_history():
    routes = np.zeros((4, 1, 2), np.int16)
    other = routes.copy()
    other[2] = 1
    assert lay([a_row([1, 2, 3, 4], routes), a_row([1, 2, 3, 4], other)], mask, share=True).shared.own == (0, 2)
    batch = lay([a_row([1, 2, 3, 4]), a_row([1, 2, 3, 4])], mask)
    assert batch.shared is None  # nobody asked
    from parl.learn.batch import _common

    assert _common(a_row([1, 2]), a_row([1, 2], media=((0, b""),))) == 0


def routed(family: str, rows: list[Row]) -> list[Row]:
    """``rows`` with routes that depend on a token's history alone."""
    shape = policy_of(family).config.routes
    if shape is None:
        return rows
    for row in rows:
        drawn = []
        for end in range(1, len(row.tokens) + 1):
            rng = np.random.default_rng(row.tokens[:end].tolist())
            drawn.append([rng.permutation(shape.experts)[: shape.chosen] for _ in range(shape.layers)])
        row.routes = np.array(drawn, np.int16)
    return rows


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_and_gradients_are_those_of_rows_by_themselves(family: str, recompute: bool):
    rng = np.random.default_rng(1)
    start = rng.integers(0, VOCAB, 25).tolist()
    more = start + rng.integers(0, VOCAB, 9).tolist()
    ends = [rng.integers(0, VOCAB, length).tolist() for length in (20, 8, 13, 11)]
    rows = [start + ends[0], start + ends[1], more + ends[2], more, ends[3]]
    policy = policy_of(family).train()
    policy.recompute = recompute
    if not policy.shares:
        assert policy.config.transformers.get("sliding_window")
        return
    group = micro_batches(routed(family, [a_row(own) for own in rows]), 1000, share=True)[0]
    found = []
    for share in (True, False):
        policy.zero_grad()
        batch = lay(group, mask, share=share)
        assert (batch.shared is not None) is share
        logprobs, _ = policy(**batch.inputs)
        (logprobs * torch.linspace(-1, 2, len(logprobs))).sum().backward()
        found.append((logprobs.detach(), {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}))
    (mine, gradients), (theirs, wanted) = found
    torch.testing.assert_close(mine, theirs, atol=2e-5, rtol=0)
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float((gradients[name] - gradient).norm()) <= 2e-5 * max(1.0, float(gradient.norm())), name
