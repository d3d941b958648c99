"""The learner's driver with ranks that record calls: shares, denominators, merged metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parl.learn import group as learner_group
from parl.learn.batch import TextRow
from parl.learn.group import LearnerGroup
from parl.learn.objective.grpo import Grpo
from parl.learn.objective.k25 import K25
from parl.learn.rows import Row


class Rank:
    """One rank. Each method's ``remote`` records its arguments and returns at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.asked: dict[str, list[tuple[tuple, dict[str, Any]]]] = {}

    def __getattr__(self, name: str) -> Any:
        outer = self

        class Method:
            def remote(self, *args: Any, **settings: Any) -> Any:
                outer.asked.setdefault(name, []).append((args, settings))
                return getattr(outer, f"_{name}")(*args, **settings)

        return Method()

    def _policy_step(self, rows, objective, **settings) -> dict[str, float]:
        n = self.number + 1.0
        return {"loss": n, "ratio": n, "logprob_gap": 10 - n, "grad_norm": 7.0, "route_overlap": 0.5}

    def _text_step(self, rows, **settings) -> dict[str, float]:
        return {"loss": 1.0, "right": 2.0, "acted": 5.0 * self.number, "grad_norm": 7.0}

    def _logprobs(self, rows, *, reference: bool, **settings) -> list[np.ndarray]:
        return [row.logprobs + (100 if reference else 0) for row in rows]


def group(ranks: int, monkeypatch: pytest.MonkeyPatch) -> LearnerGroup:
    monkeypatch.setattr(learner_group, "wait", lambda calls, *bounds, **options: calls)
    out = LearnerGroup.__new__(LearnerGroup)
    out._ranks = [Rank(number) for number in range(ranks)]
    out._micro_tokens, out._deadline_s, out._shared = 64, 5.0, False
    return out


def row(number: int, length: int, trained: int) -> Row:
    mask = np.arange(length) >= length - trained
    return Row(
        key=("t", number, "0"),
        tokens=np.zeros(length, np.int32),
        mask=mask,
        logprobs=np.full(length, number, np.float32),
        advantages=mask.astype(np.float32),
    )


ROWS = [row(0, 50, 5), row(1, 20, 20 - 1), row(2, 40, 1), row(3, 10, 4)]
STEP = {"temperature": 0.9, "lr_scale": 0.5}


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_all_ranks_divide_by_the_tokens_of_the_whole_step(ranks: int, monkeypatch: pytest.MonkeyPatch):
    learners = group(ranks, monkeypatch)
    learners.policy_step(ROWS, K25(), **STEP)
    calls = [rank.asked["policy_step"][0] for rank in learners._ranks]
    dealt = [one.key[1] for (share, _), _ in calls for one in share]
    assert sorted(dealt) == [0, 1, 2, 3]
    for _, settings in calls:
        assert settings["denominator"] == 5 + 19 + 1 + 4
        assert (settings["temperature"], settings["lr_scale"], settings["micro_tokens"]) == (0.9, 0.5, 64)


def test_long_rows_are_spread_by_what_they_cost(monkeypatch: pytest.MonkeyPatch):
    learners = group(2, monkeypatch)
    learners.policy_step([row(0, 60, 1), row(1, 20, 1), row(2, 19, 1), row(3, 18, 1)], K25(), **STEP)
    shares = [sorted(one.key[1] for one in rank.asked["policy_step"][0][0][0]) for rank in learners._ranks]
    assert shares == [[0], [1, 2, 3]]


def test_what_ranks_contribute_adds_up_and_what_all_know_counts_once(monkeypatch: pytest.MonkeyPatch):
    metrics = group(3, monkeypatch).policy_step(ROWS, K25(), **STEP)
    assert metrics == {"loss": 6.0, "ratio": 6.0, "logprob_gap": 9.0, "grad_norm": 7.0, "route_overlap": 0.5}


def text(*weights: float) -> TextRow:
    return TextRow(tokens=np.zeros(len(weights), np.int32), weights=np.array(weights, np.float32))


def test_texts_are_dealt_out_and_divided_by_the_weight_that_can_be_learned(monkeypatch: pytest.MonkeyPatch):
    learners = group(2, monkeypatch)
    texts = [text(1, 0.5, 1), text(0.5, 1, 1, 1)]  # a first token is predicted by nothing
    learners.policy_step(ROWS, K25(ptx=0.3), texts=texts, **STEP)
    settings = [rank.asked["policy_step"][0][1] for rank in learners._ranks]
    assert [one["text_denominator"] for one in settings] == [1.5 + 3, 1.5 + 3]
    assert sorted(len(read.tokens) for one in settings for read in one["texts"]) == [3, 4]
    with pytest.raises(ValueError, match=r"objective\.ptx=0\.3 needs texts"):
        learners.policy_step(ROWS, K25(ptx=0.3), **STEP)


def test_accuracy_is_a_share_of_what_agents_wrote_on_all_ranks(monkeypatch: pytest.MonkeyPatch):
    learners = group(3, monkeypatch)
    metrics = learners.text_step([text(1, 0.5, 1), text(0.5, 1)], lr_scale=0.25)
    assert metrics == {"loss": 3.0, "grad_norm": 7.0, "accuracy": pytest.approx((3 * 2) / (0 + 5 + 10))}
    settings = learners._ranks[0].asked["text_step"][0][1]
    assert (settings["denominator"], settings["lr_scale"]) == (2.5 + 1.5, 0.25)


@pytest.mark.parametrize(
    ("objective", "fields"),
    [
        (K25(), ()),
        (K25(kl=0.1), ("reference",)),
        (Grpo(correction="tis"), ("proximal",)),
        (Grpo(correction="tis", kl=0.1), ("proximal", "reference")),
    ],
)
def test_rows_get_the_log_probs_that_the_objective_needs_in_their_own_order(objective, fields, monkeypatch):
    learners = group(2, monkeypatch)
    found = learners.score(ROWS, objective, temperature=0.9)
    assert [one.key for one in found] == [one.key for one in ROWS]
    for number, one in enumerate(found):
        for name, offset in (("proximal", 0), ("reference", 100)):
            values = getattr(one, name)
            assert (values is not None) == (name in fields)
            assert values is None or set(values.tolist()) == {number + offset}
