"""Schedules of λ, Toggle, the convex form, and the settings that others published."""

from __future__ import annotations

from pathlib import Path

import pytest

from envs.base import Gold, Role, Score, Task
from parl.config.load import load_config
from rewards.group import note_groups
from rewards.parl_reward import Parl
from rewards.schedule import SCHEDULES, annealed
from rewards.score import score_episode
from rewards.toggle import BUDGET, Toggle
from rollouts.episode import Episode, EpisodeStatus, Trace, Turn

ROOT = Path(__file__).parents[2]
TASK = Task(key="k", family="wide", split="train", prompt="p", gold=Gold(kind="exact", answers=("yes",)))


def episode(tokens: int, answer: str = "yes", turns: int = 1) -> Episode:
    root = [Turn(start=i * tokens, end=(i + 1) * tokens) for i in range(turns)]
    trace = Trace(agent_id="0", role=Role.ORCHESTRATOR, turns=root)
    return Episode(task=TASK, index=0, seed=0, traces=[trace], status=EpisodeStatus.ANSWERED, answer=answer)


def total(one: Episode, reward: Parl, step: int) -> float:
    score_episode(one, reward, reward.weights(step, 10))
    return one.rewards["total"]


def test_cosine_by_hand():
    values = [annealed(0.4, 0.8, step, 10, "cosine") for step in range(10)]
    assert values[0] == 0.4 and values[4] == pytest.approx(0.2) and values[8:] == [0.0, 0.0]
    assert values[2] == pytest.approx(0.4 * (1 + 2**-0.5) / 2)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "constant"])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_schedules_fall_from_the_start_to_zero_and_stay_there(name: str, fraction: float):
    values = [annealed(0.3, fraction, step, 20, name) for step in range(20)]
    assert values[0] == 0.3 and values[-1] == 0.0
    assert values == sorted(values, reverse=True)
    assert not any(values[step] for step in range(20) if step >= fraction * 20)


def test_a_constant_lambda_is_not_paid_for_in_an_evaluation():
    reward = Parl(schedule="constant", critical_penalty=0.0)
    assert reward.weights(9, 10)["parallel"] == 0.3
    assert reward.held_out() == {"parallel": 0.0, "finish": 0.0, "critical": 0.0}


def test_the_convex_form_pays_quality_only_of_solved_tasks():
    reward = Parl(form="convex", lambda_parallel=0.1, lambda_finish=0.0, critical_penalty=0.0)
    assert total(episode(1), reward, 0) == pytest.approx(0.9)
    assert total(episode(1), reward, 9) == 1.0
    partly = episode(1)
    partly.score = Score(value=0.6, success=False)
    assert total(partly, reward, 9) == 0.0
    assert partly.rewards["perf"] == 0.6  # tracked, not paid


def test_toggle_pays_solved_tasks_within_the_groups_budget_in_every_other_phase():
    reward = Parl(toggle=Toggle(every=2, percentile=50, enough=0.7), critical_penalty=0.0)
    group = [episode(10), episode(20), episode(30), episode(5, answer="no")]
    note_groups(group, reward)
    assert {one.metrics[BUDGET] for one in group} == {20.0}
    assert [total(one, reward, 0) for one in group] == [1.0, 1.0, 0.0, 0.0]
    assert [total(one, reward, 2) for one in group] == [1.0, 1.0, 1.0, 0.0]
    assert [total(one, reward, 4) for one in group] == [1.0, 1.0, 0.0, 0.0]
    score_episode(group[2], reward, reward.held_out())
    assert group[2].rewards["total"] == 1.0


def test_toggle_sets_no_budget_where_few_solved_the_task():
    reward = Parl(toggle=Toggle(every=2, enough=0.7))
    group = [episode(10), episode(30), episode(5, answer="no")]
    note_groups(group, reward)
    assert BUDGET not in group[0].metrics and reward.parts(group[1], Score(value=1.0))["over"] == 0.0


def test_toggle_on_critical_steps():
    reward = Parl(toggle=Toggle(every=1, cost="steps", percentile=50))
    group = [episode(50, turns=1), episode(1, turns=2), episode(1, turns=9)]
    note_groups(group, reward)
    assert [reward.parts(one, Score(value=1.0))["over"] for one in group] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "rule", "cap"), [("openparl", "tool", 10), ("wideseek_r1", "needed", 16), ("blog", "any", 100)]
)
def test_published_settings_load(name: str, rule: str, cap: int):
    reward = load_config(ROOT / "configs" / "rewards" / f"{name}.yaml").rewards
    assert isinstance(reward, Parl)
    assert (reward.validity, reward.parallel_cap, reward.critical_penalty) == (rule, cap, 0.0)
    weights = reward.weights(0, 10), reward.weights(9, 10)
    wanted = {"openparl": (0.3, 0.3), "wideseek_r1": (0.0, 0.0), "blog": (0.1, 0.0)}
    assert tuple(one["parallel"] for one in weights) == wanted[name]
