"""Budgets that depend on the task."""

from __future__ import annotations

import math

from envs.base import Task
from rollouts.config import BudgetConfig

_SLACK = 4  # turns


def critical_budget(task: Task, budget: BudgetConfig, slack: float = 1.0) -> int:
    """Critical steps allowed, in turns: ⌈factor · oracle.serial_steps⌉ + 4; 0 = unlimited.

    Without an oracle ``budget.critical_steps``, by default as many as a single agent may take alone. K2.5 limits
    training and evaluation by critical, not total, steps; it does not say how large the limit is. ``slack``: the
    factor of a curriculum (``CurriculumConfig.slack_at``); what it gives is rounded up.
    """
    return math.ceil(slack * _tight(task, budget) - 1e-9)


def _tight(task: Task, budget: BudgetConfig) -> int:
    if task.oracle is None:
        return budget.orchestrator_steps if budget.critical_steps is None else budget.critical_steps
    factor = budget.critical_factor
    return math.ceil(factor * task.oracle.serial_steps - 1e-9) + _SLACK  # 1.1 * 50 is 55, not 55.00000000000001
