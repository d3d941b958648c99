"""Intervals for means over runs and tasks: runs are resampled by their cold start, tasks are resampled, both at once.

Every run meets the same tasks, so runs and tasks are crossed, and a resample draws both independently (Owen 2007, "The
pigeonhole bootstrap", Annals of Applied Statistics 1). Runs of one cold start are not independent: a resample takes a
cold start with all its runs (Davison and Hinkley 1997, section 3.8, keep the lower level as it is). With one cold
start runs are resampled, with one run only tasks: the interval then speaks for that cold start or run alone.

A bootstrap of three cold starts is far too narrow. Each resample's deviation is therefore split into the part of the
runs, the part of the tasks and the rest, and the first two are widened for their numbers n as in
``parl.evaluate.statistics`` (Hesterberg 2015): by t(n - 1) / z and sqrt(n / (n - 1)).

Shapes: R runs, T tasks, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist

import numpy as np

from parl.evaluate.statistics import Interval

_Mean = Callable[[np.ndarray, np.ndarray], np.ndarray]  # weights of runs [B, R], of tasks [B, T] -> statistic [B]


class Crossed:
    """Resamples of ``clusters`` (one label for each run) and ``tasks`` tasks, as a function of ``seed``.

    The estimate is the mean over cold starts of their runs' means.
    """

    def __init__(
        self,
        clusters: Sequence[Hashable],
        tasks: int,
        *,
        confidence: float = 0.95,
        resamples: int = 2000,
        seed: int = 0,
    ) -> None:
        if not clusters or tasks < 1 or not 0 < confidence < 1:
            raise ValueError(f"needs runs, tasks and 0 < confidence < 1, not {clusters=}, {tasks=}, {confidence=}")
        self.alpha, self.tasks = 1 - confidence, tasks
        units: list[Hashable] = list(clusters) if len(set(clusters)) > 1 else list(range(len(clusters)))
        names = list(dict.fromkeys(units))
        self.units, self.cold_starts = len(names), len(set(clusters))
        rng = np.random.default_rng(seed)
        share_R = np.array([1 / units.count(unit) for unit in units])
        drawn_BU = rng.multinomial(self.units, [1 / self.units] * self.units, resamples)
        which_R = np.array([names.index(unit) for unit in units])
        self._runs_BR = drawn_BU[:, which_R] * share_R / self.units
        self._tasks_BT = rng.multinomial(tasks, [1 / tasks] * tasks, resamples) / tasks
        self._run_1R, self._task_1T = (share_R / self.units)[None], np.full((1, tasks), 1 / tasks)

    def mean(self, values_RT: np.ndarray, *, bounds: tuple[float, float] | None = None) -> Interval:
        """The mean over runs and tasks; ``bounds`` of the values, if known: (0, 1) for a score."""
        x_RT = self._checked(values_RT)
        found = self._interval(lambda runs, tasks: np.einsum("bt,bt->b", runs @ x_RT, tasks))
        if bounds is None:
            return found
        low, high = found.low, found.high
        if np.all(x_RT == x_RT[0, 0]):  # as wide as so many equal observations allow
            unseen = 1 - (self.alpha / 2) ** (1 / self.tasks)
            low, high = (found.value + unseen * (end - found.value) for end in bounds)
        return Interval(found.value, max(low, bounds[0]), min(high, bounds[1]))

    def difference(self, a_RT: np.ndarray, b_RT: np.ndarray, *, bounds: tuple[float, float] | None = None) -> Interval:
        """Mean of b - a, of the same tasks and paired runs; ``bounds`` those of a and b."""
        span = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
        return self.mean(self._checked(b_RT) - self._checked(a_RT), bounds=span)

    def ratio(self, a_RT: np.ndarray, b_RT: np.ndarray) -> Interval | None:
        """Mean of a over mean of b, its interval on the logarithm; None unless all means are positive."""
        top_RT, bottom_RT = self._checked(a_RT), self._checked(b_RT)
        if min(top_RT.min(), bottom_RT.min()) < 0 or not (top_RT.any(axis=1).all() and bottom_RT.any(axis=1).all()):
            return None

        def logarithm(runs: np.ndarray, tasks: np.ndarray) -> np.ndarray:
            top, bottom = (np.einsum("bt,bt->b", runs @ x, tasks) for x in (top_RT, bottom_RT))
            tiny = np.finfo(float).tiny  # a resample without any cost, of tasks that mostly have none
            return np.log(np.maximum(top, tiny)) - np.log(np.maximum(bottom, tiny))

        found = self._interval(logarithm)
        return Interval(*(math.exp(one) if one < 700 else math.inf for one in found))

    def _checked(self, values_RT: np.ndarray) -> np.ndarray:
        x_RT = np.asarray(values_RT, dtype=float)
        wanted = (self._run_1R.shape[1], self.tasks)
        if x_RT.shape != wanted or not np.isfinite(x_RT).all():
            raise ValueError(f"needs finite values of shape {wanted}, not {x_RT.shape}")
        return x_RT

    def _interval(self, statistic: _Mean) -> Interval:
        value = float(statistic(self._run_1R, self._task_1T)[0])
        runs_B = statistic(self._runs_BR, np.broadcast_to(self._task_1T, self._tasks_BT.shape)) - value
        tasks_B = statistic(np.broadcast_to(self._run_1R, self._runs_BR.shape), self._tasks_BT) - value
        rest_B = statistic(self._runs_BR, self._tasks_BT) - value - runs_B - tasks_B
        if self.tasks == 1:  # one task has no spread
            return Interval(value, -math.inf, math.inf)
        moved_B = self._widened(self.units) * runs_B + self._widened(self.tasks) * tasks_B + rest_B
        low, high = np.quantile(moved_B, [self.alpha / 2, 1 - self.alpha / 2])
        return Interval(value, value + float(low), value + float(high))

    def _widened(self, n: int) -> float:
        """The factor for n units."""
        if n == 1:
            return 1.0  # its deviations are all 0
        from scipy.special import stdtrit  # imported lazily: it takes half a second

        z = NormalDist().inv_cdf(1 - self.alpha / 2)
        return math.sqrt(n / (n - 1)) * float(stdtrit(n - 1, 1 - self.alpha / 2)) / z
