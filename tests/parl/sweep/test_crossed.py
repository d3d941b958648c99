"""Intervals over runs and tasks: by hand, by simulation with fixed seeds, and against the one over tasks alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from parl.evaluate.statistics import Bootstrap
from parl.sweep.results.crossed import Crossed

ROUNDS = 300
SLACK = 3 * math.sqrt(0.95 * 0.05 / ROUNDS)


def coverage(cold: int, runs: int, tasks: int, *, a: float, b: float, t: float, e: float) -> float:
    """Share of rounds whose interval holds the truth 0; standard deviations of cold start, run, task and rest."""
    clusters, hits = [c for c in range(cold) for _ in range(runs)], 0
    for seed in range(ROUNDS):
        rng = np.random.default_rng(seed)
        x = rng.normal(0, a, (cold, 1, 1)) + rng.normal(0, b, (cold, runs, 1)) + rng.normal(0, t, (1, 1, tasks))
        x = (x + rng.normal(0, e, (cold, runs, tasks))).reshape(-1, tasks)
        found = Crossed(clusters, tasks, resamples=600, seed=seed).mean(x)
        hits += found.low <= 0 <= found.high
    return hits / ROUNDS


@pytest.mark.parametrize(
    ("cold", "runs", "spread"),
    [
        (3, 2, {"a": 0.1, "b": 0.1, "t": 0.5, "e": 0.5}),
        (3, 1, {"a": 0.3, "b": 0.0, "t": 0.1, "e": 0.1}),
        (1, 3, {"a": 0.0, "b": 0.2, "t": 0.5, "e": 0.5}),
        (5, 2, {"a": 0.2, "b": 0.1, "t": 0.3, "e": 0.3}),
    ],
)
def test_intervals_hold_the_truth_as_often_as_they_say(cold: int, runs: int, spread: dict[str, float]):
    assert coverage(cold, runs, 40, **spread) > 0.95 - SLACK


def test_runs_of_one_cold_start_are_not_counted_as_independent():
    """Six runs of three cold starts that differ: taken as six they promise too much."""
    x = np.repeat([[0.0], [1.0], [2.0]], 2, axis=0) + np.zeros((6, 20))
    own, wrong = (Crossed(clusters, 20).mean(x) for clusters in ([0, 0, 1, 1, 2, 2], range(6)))
    assert own.value == pytest.approx(1.0) == wrong.value
    assert own.high - own.low > 1.5 * (wrong.high - wrong.low)
    exact = scipy.stats.t.ppf(0.975, 2) * np.std([0, 1, 2], ddof=1) / 3**0.5
    assert (own.high - own.low) / 2 == pytest.approx(exact, rel=0.1)


def test_one_run_has_the_interval_over_tasks_alone():
    x = np.random.default_rng(4).beta(2, 1, 30)
    alone, own = Bootstrap(30).mean(x), Crossed(["only"], 30, resamples=4000).mean(x[None])
    assert own.value == pytest.approx(alone.value)
    assert own.high - own.low == pytest.approx(alone.high - alone.low, rel=0.06)


def test_the_estimate_is_the_mean_over_cold_starts_of_their_runs():
    x = np.array([[0.0] * 5, [0.0] * 5, [3.0] * 5])
    assert Crossed(["a", "a", "b"], 5).mean(x).value == pytest.approx(1.5)


def test_scores_stay_between_their_bounds_and_equal_ones_are_not_certain():
    x = np.ones((2, 30))
    assert Crossed([0, 1], 30).mean(x, bounds=(0, 1)) == pytest.approx((1.0, 0.025 ** (1 / 30), 1.0))
    x[:, 0] = 0
    found = Crossed([0, 1], 30).mean(x, bounds=(0, 1))
    assert found.high == 1.0 and 0 <= found.low < found.value


def test_a_paired_difference_is_far_narrower_than_that_of_the_means_and_has_its_sign():
    rng = np.random.default_rng(1)
    a = rng.normal(0, 5, (1, 50)) + rng.normal(0, 0.1, (3, 50))
    crossed = Crossed([0, 1, 2], 50)
    found = crossed.difference(a, a + 1 + rng.normal(0, 0.1, (3, 50)))
    assert found.value == pytest.approx(1.0, abs=0.05) and 0.9 < found.low < 1 < found.high < 1.1
    assert crossed.mean(a).high - crossed.mean(a).low > 10 * (found.high - found.low)


def test_a_ratio_is_that_of_the_means_and_absent_without_costs():
    rng = np.random.default_rng(2)
    base = rng.uniform(5, 20, (1, 60)) + rng.uniform(0, 1, (3, 60))
    crossed = Crossed([0, 1, 2], 60)
    found = crossed.ratio(3 * base, base)
    assert found == pytest.approx((3.0, 3.0, 3.0))
    turned = crossed.ratio(base, 3 * base + rng.uniform(0, 9, (3, 60)))
    assert turned and turned.low < turned.value < turned.high
    assert crossed.ratio(np.zeros((3, 60)), base) is None
    assert Crossed([0, 1], 1).ratio(np.full((2, 1), 6.0), np.full((2, 1), 3.0)) == pytest.approx((2.0, 0.0, math.inf))


def test_values_of_another_shape_or_without_a_number_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        Crossed([0, 1], 3).mean(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="finite"):
        Crossed([0, 1], 1).mean(np.array([[1.0], [math.nan]]))
