"""Budgets that depend on the task."""

from __future__ import annotations

import math

from envs.base import Task


def critical_budget(task: Task, factor: float, slack: int = 4) -> int:
    """Critical steps allowed: ⌈factor · oracle.serial_steps⌉ + slack, in turns; 0 = unlimited (no oracle).

    K2.5 limits training and evaluation by critical, not total, steps; it does not say how large the limit is.
    """
    if factor <= 0 or slack < 0:
        raise ValueError(f"critical budget needs factor > 0 and slack >= 0, not factor={factor}, slack={slack}")
    if task.oracle is None:
        return 0
    return math.ceil(factor * task.oracle.serial_steps - 1e-9) + slack  # 1.1 * 50 is 55, not 55.00000000000001
