"""Budgets that depend on the task."""

from __future__ import annotations

import math

from envs.base import Task

_SLACK = 4  # turns


def critical_budget(task: Task, factor: float) -> int:
    """Critical steps allowed: ⌈factor · oracle.serial_steps⌉ + 4, in turns; 0 = unlimited (no oracle).

    K2.5 limits training and evaluation by critical, not total, steps; it does not say how large the limit is.
    """
    if task.oracle is None:
        return 0
    return math.ceil(factor * task.oracle.serial_steps - 1e-9) + _SLACK  # 1.1 * 50 is 55, not 55.00000000000001
