"""Estimates over tasks and attempts, with bootstrap intervals.

Tasks are resampled, with all their attempts, since attempts at one task are not independent. Intervals are
percentile intervals at levels that are widened for few tasks (Hesterberg 2015, "What teachers should know
about the bootstrap", the expanded percentile interval: the t quantile and the factor sqrt(n / (n - 1))).
scipy's bootstrap has no such interval: its own hold less often than nominal with few tasks, and have no width
for equal values.

For equal values with known bounds the interval is as wide as n such observations allow: a share of 1 -
(α/2)^(1/n) of all tasks may be at a bound (the Clopper-Pearson limit). ``benchmarks/coverage.py`` measures
the intervals' coverage.

Shapes: T tasks, A attempts at each, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

Values = Sequence[float] | np.ndarray
_NORMAL = NormalDist()


class Interval(NamedTuple):
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Resamples of ``tasks`` tasks, shared by all statistics, as a function of ``seed``.

    Differences and ratios of two policies resample the same tasks for both (paired).
    """

    def __init__(self, tasks: int, *, confidence: float = 0.95, resamples: int = 4000, seed: int = 0) -> None:
        if tasks < 1 or not 0 < confidence < 1 or resamples < 1:
            raise ValueError(f"needs tasks >= 1, 0 < confidence < 1, not {tasks=}, {confidence=}, {resamples=}")
        self.tasks, self.alpha = tasks, 1 - confidence
        drawn_BT = np.random.default_rng(seed).integers(0, tasks, (resamples, tasks))
        flat = drawn_BT + tasks * np.arange(resamples)[:, None]
        counts_BT = np.bincount(flat.ravel(), minlength=resamples * tasks).reshape(resamples, tasks)
        self._weights_BT = counts_BT / tasks

    def mean(self, values_T: Values, *, bounds: tuple[float, float] | None = None) -> Interval:
        """The mean over tasks. ``bounds`` of the values, if known: (0, 1) for a score."""
        x_T = self._checked(values_T)
        low, high = self._ends(self._weights_BT @ x_T)
        first = float(x_T[0])
        if bounds is not None and np.all(x_T == x_T[0]):
            unseen = 1 - (self.alpha / 2) ** (1 / self.tasks)
            low, high = first - unseen * (first - bounds[0]), first + unseen * (bounds[1] - first)
        return Interval(float(x_T.mean()), low, high)

    def difference(self, a_T: Values, b_T: Values, *, bounds: tuple[float, float] | None = None) -> Interval:
        """Mean of b − a over the same tasks; ``bounds`` as in :meth:`mean`, those of a and b."""
        span = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
        return self.mean(self._checked(b_T) - self._checked(a_T), bounds=span)

    def ratio(self, a_T: Values, b_T: Values) -> Interval | None:
        """Mean of a over mean of b on the same tasks; None if b is 0 throughout a resample."""
        top_B, bottom_B = self._weights_BT @ self._checked(a_T), self._weights_BT @ self._checked(b_T)
        if np.any(bottom_B == 0):
            return None
        return Interval(float(np.mean(a_T) / np.mean(b_T)), *self._ends(top_B / bottom_B))

    def _checked(self, values_T: Values) -> np.ndarray:
        x_T = np.asarray(values_T, dtype=float)
        if x_T.shape != (self.tasks,) or not np.isfinite(x_T).all():
            raise ValueError(f"needs {self.tasks} finite values, one a task, not an array of shape {x_T.shape}")
        return x_T

    def _ends(self, statistic_B: np.ndarray) -> tuple[float, float]:
        n = self.tasks
        if n == 1:  # one task has no spread
            return -math.inf, math.inf
        from scipy.special import stdtrit  # imported lazily: it takes half a second

        widened = math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, 1 - self.alpha / 2))
        tail = _NORMAL.cdf(-widened)
        low, high = np.quantile(statistic_B, [tail, 1 - tail])
        return float(low), float(high)


def best_of(values_A: Sequence[float], k: int) -> float:
    """Expected best of k of these attempts, drawn without replacement: unbiased max@k.

    With values 0 and 1 it is pass@k, 1 − C(n−c, k) / C(n, k) for c right ones of n. ValueError if k > n or k
    < 1.
    """
    n = len(values_A)
    if not 1 <= k <= n:
        raise ValueError(f"the best of {k} attempts needs at least {k} of them and k >= 1, there are {n}")
    ordered = sorted(values_A)
    return sum(value * math.comb(i, k - 1) for i, value in enumerate(ordered)) / math.comb(n, k)
