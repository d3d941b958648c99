"""Estimates worked out by hand, and the coverage of intervals, by simulation with fixed seeds."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from parl.evaluate.statistics import Bootstrap, best_of

SCORE = (0.0, 1.0)
ROUNDS = 1000
SLACK = 3 * math.sqrt(0.95 * 0.05 / ROUNDS)  # three standard errors of a measured coverage of 0.95: 0.021


def test_the_best_of_k_is_the_mean_over_all_choices_of_k():
    values = [0.1, 0.9, 0.4, 0.4, 1.0]
    for k in range(1, 6):
        choices = [max(chosen) for chosen in itertools.combinations(values, k)]
        assert best_of(values, k) == pytest.approx(sum(choices) / len(choices))
    assert best_of([0, 1, 0, 0], 2) == pytest.approx(1 - math.comb(3, 2) / math.comb(4, 2))
    with pytest.raises(ValueError, match="best of 3 attempts"):
        best_of([1.0, 2.0], 3)


def test_what_is_ours_is_what_scipys_bootstrap_lacks():
    values = np.random.default_rng(3).beta(2, 1, 10)
    ours = Bootstrap(10).mean(values, bounds=SCORE)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    wider = (ours.high - ours.low) / (theirs.high - theirs.low)
    expected = (10 / 9) ** 0.5 * scipy.stats.t.ppf(0.975, 9) / scipy.stats.norm.ppf(0.975)
    assert wider == pytest.approx(expected, rel=0.1) and wider > 1.1
    same = scipy.stats.bootstrap((np.ones(10),), np.mean, method="percentile", rng=1).confidence_interval
    assert same.high - same.low == 0 < 1 - Bootstrap(10).mean([1.0] * 10, bounds=SCORE).low


@pytest.mark.parametrize("tasks", [1, 2, 10, 160])
def test_equal_values_reach_as_far_as_clopper_and_pearson_allow(tasks: int):
    limit = scipy.stats.binomtest(tasks, tasks).proportion_ci(0.95, method="exact").low
    assert 0.025 ** (1 / tasks) == pytest.approx(limit, abs=1e-12)  # their limit in closed form
    assert Bootstrap(tasks).mean([1.0] * tasks, bounds=SCORE).low == pytest.approx(limit, abs=1e-12)


def test_intervals_are_a_function_of_the_seed_and_hold_the_estimate():
    values = np.random.default_rng(3).random(40)
    first, again, other = (Bootstrap(40, seed=seed).mean(values) for seed in (1, 1, 2))
    assert first == again != other
    assert first.low < first.value < first.high and first.value == pytest.approx(values.mean())


@pytest.mark.parametrize(
    ("tasks", "widened"),
    [
        (2, 2**0.5 * 12.7062),  # sqrt(n / (n - 1)) times Student's t of 0.975 with n - 1 degrees of freedom
        (5, 1.25**0.5 * 2.7764),
        (21, 1.05**0.5 * 2.0860),
        (121, (121 / 120) ** 0.5 * 1.9799),
    ],
)
def test_ends_are_quantiles_at_levels_that_are_widened_for_few_tasks(tasks: int, widened: float):
    tail = 0.5 * math.erfc(widened / math.sqrt(2))
    assert Bootstrap(tasks, resamples=2)._ends(np.linspace(0, 1, 10**5 + 1)) == pytest.approx(
        (tail, 1 - tail), rel=0.01, abs=2e-5
    )


def test_every_resample_draws_as_many_tasks_as_there_are():
    weights = Bootstrap(7, resamples=500)._weights_BT
    assert weights.shape == (500, 7) and np.allclose(weights.sum(axis=1), 1.0)
    assert np.allclose(weights * 7, np.round(weights * 7)) and abs(weights.mean() - 1 / 7) < 1e-12
    assert weights.std() == pytest.approx((6 / 7 / 7 / 7) ** 0.5, rel=0.05)  # of Binomial(7, 1/7) / 7


def test_ratios_are_of_means_and_not_means_of_ratios():
    ratio = Bootstrap(2).ratio([1.0, 9.0], [1.0, 3.0])
    assert ratio is not None and ratio.value == 2.5


def test_differences_are_of_the_second_from_the_first():
    assert Bootstrap(3).difference([1.0, 2.0, 3.0], [2.0, 4.0, 3.0]).value == 1.0


def test_equal_values_do_not_pretend_to_certainty():
    perfect = Bootstrap(10).mean([1.0] * 10, bounds=SCORE)
    assert perfect == (1.0, pytest.approx(0.025**0.1), 1.0)  # Clopper and Pearson: 0.6915
    tie = Bootstrap(10).difference([1.0] * 10, [1.0] * 10, bounds=SCORE)
    assert tie.value == 0 and tie.low == pytest.approx(0.025**0.1 - 1) == -tie.high
    assert Bootstrap(10).mean([5.0] * 10) == (5.0, 5.0, 5.0)
    assert Bootstrap(1).mean([0.3]) == (0.3, -math.inf, math.inf)


def test_a_paired_difference_is_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    a, b = hard + 0.01 * rng.random(60), hard + 0.05 + 0.01 * rng.random(60)
    paired = Bootstrap(60).difference(a, b)
    assert 0.03 < paired.low < paired.high < 0.07
    assert Bootstrap(60).mean(a).high > Bootstrap(60).mean(b).low


def test_ratios_by_hand():
    assert Bootstrap(3).ratio([2, 4, 6], [1, 2, 3]) == (2.0, pytest.approx(2.0), pytest.approx(2.0))
    assert Bootstrap(3).ratio([1, 1, 1], [0, 0, 1]) is None
    with pytest.raises(ValueError, match="needs 3 finite values"):
        Bootstrap(3).mean([1.0, math.nan, 2.0])
    with pytest.raises(ValueError, match="needs 3 finite values"):
        Bootstrap(3).ratio([1, 2], [1, 2, 3])


def _attempts(rng: np.random.Generator, p_T: np.ndarray, count: int = 4) -> np.ndarray:
    return (rng.random((len(p_T), count)) < p_T[:, None]).mean(axis=1)


def _avg_at_4(rng: np.random.Generator, tasks: int, boot: Bootstrap):
    return boot.mean(_attempts(rng, rng.beta(2, 1, tasks)), bounds=SCORE)


def _pass_at_4(rng: np.random.Generator, tasks: int, boot: Bootstrap):
    return boot.mean([best_of(r, 4) for r in rng.random((tasks, 4)) < rng.beta(1, 2, (tasks, 1))], bounds=SCORE)


def _one_attempt(rng: np.random.Generator, tasks: int, boot: Bootstrap):
    return boot.mean((rng.random(tasks) < 0.7).astype(float), bounds=SCORE)


def _paired(rng: np.random.Generator, tasks: int, boot: Bootstrap):
    p_T = rng.beta(2, 1, tasks)
    return boot.difference(_attempts(rng, p_T), _attempts(rng, 0.9 * p_T), bounds=SCORE)


def _speedup(rng: np.random.Generator, tasks: int, boot: Bootstrap):
    width_T = rng.integers(2, 17, tasks)
    return boot.ratio(2 * width_T + 1 + rng.poisson(2, tasks), 5 + rng.poisson(1, tasks))


@pytest.mark.parametrize("tasks", [20, 60])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (_avg_at_4, 2 / 3),
        (_pass_at_4, 1 - 2 / 6),  # E[(1 - p)^4] under Beta(1, 2) is B(1, 6) / B(1, 2) = 2 / 6
        (_one_attempt, 0.7),
        (_paired, -0.1 * 2 / 3),
        (_speedup, 21 / 6),
    ],
    ids=["avg@4", "pass@4", "one attempt", "paired difference", "ratio of critical steps"],
)
def test_intervals_hold_as_often_as_they_say(draw: Callable, truth: float, tasks: int):
    boot = Bootstrap(tasks, resamples=1000)
    rng = np.random.default_rng(tasks)
    held = 0
    for _ in range(ROUNDS):
        interval = draw(rng, tasks, boot)
        held += interval.low <= truth <= interval.high
    assert abs(held / ROUNDS - 0.95) < SLACK + 0.005, held / ROUNDS


@pytest.mark.parametrize("share", [0.0, 0.02, 0.98])
def test_intervals_hold_also_where_nearly_all_tasks_are_alike(share: float):
    boot, rng = Bootstrap(30, resamples=1000), np.random.default_rng(5)
    drawn = [boot.mean((rng.random(30) < share).astype(float), bounds=SCORE) for _ in range(ROUNDS)]
    assert sum(i.low <= share <= i.high for i in drawn) / ROUNDS > 0.95 - SLACK


def test_statistics_import_without_torch():
    code = "import sys, parl.evaluate.statistics; assert not {'torch', 'ray', 'pandas', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
