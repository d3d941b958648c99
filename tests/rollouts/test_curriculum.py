"""Critical budgets that begin with slack."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError
from stored import wide_task

from rollouts.config import BudgetConfig, CurriculumConfig
from rollouts.swarm.budget import critical_budget


def test_the_slack_falls_in_equal_parts_to_one():
    curriculum = CurriculumConfig(slack=3, until=0.5)
    assert [curriculum.slack_at(step, 8) for step in range(8)] == [3.0, 2.5, 2.0, 1.5, 1.0, 1.0, 1.0, 1.0]


def test_in_stairs_it_keeps_each_height_for_equal_times():
    curriculum = CurriculumConfig(slack=3, until=0.6, stairs=2)
    assert [curriculum.slack_at(step, 10) for step in range(8)] == [3.0, 3.0, 3.0, 2.0, 2.0, 2.0, 1.0, 1.0]


@pytest.mark.parametrize("stairs", [None, 1, 3, 7])
@pytest.mark.parametrize("until", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_it_never_rises_and_the_last_step_is_tight(steps: int, until: float, stairs: int | None):
    curriculum = CurriculumConfig(slack=2.5, until=until, stairs=stairs)
    values = [curriculum.slack_at(step, steps) for step in range(steps)]
    assert values == sorted(values, reverse=True) and values[-1] == 1.0
    assert all(1 <= value <= 2.5 for value in values) and (steps == 1 or values[0] == 2.5)
    assert all(value == 1.0 for step, value in enumerate(values) if step >= until * steps)


def test_it_is_off_by_default():
    assert {BudgetConfig().curriculum.slack_at(step, 20) for step in range(20)} == {1.0}
    with pytest.raises(ValidationError, match="slack"):
        CurriculumConfig(slack=0.5)


def test_the_budget_of_a_task_with_slack_is_rounded_up():
    task, budget = wide_task(1), BudgetConfig(critical_factor=2)  # 2 * 9 + 4 = 22
    assert [critical_budget(task, budget, slack) for slack in (1.0, 1.5, 1.51, 2.0)] == [22, 33, 34, 44]
    task = replace(task, oracle=None)
    assert critical_budget(task, BudgetConfig(critical_steps=9), 1.5) == 14
    assert critical_budget(task, BudgetConfig(critical_steps=0), 2.0) == 0  # unlimited stays unlimited
