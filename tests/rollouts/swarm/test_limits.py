"""Slots, deadlines and the stop switch: how they bound a swarm, and what is kept."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from benchmarks.simulated import (
    Latency,
    SimulatedEngine,
    SimulatedEnvironment,
    SkippingLoop,
    fan_out,
    run_on,
    simulated_task,
)
from envs.base import ErrorKind
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from rollouts.config import BudgetConfig, LimitsConfig
from rollouts.critical_path import makespan
from rollouts.episode import Episode, EpisodeStatus, TraceStatus
from rollouts.store.store import EpisodeStore
from rollouts.swarm.limits import Deadline, Slots, StopSwitch
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

SECOND = Latency(median_s=1.0)
BUDGET = BudgetConfig(subagents=100, subagent_steps=100, episode_s=1000.0, call_s=100.0, total_tokens=10**6)


def still() -> SkippingLoop:
    return SkippingLoop(cpu=False)  # computing takes no time: seconds are exact


class Play:
    """Episodes of simulated swarms on their own clock."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.environment = SimulatedEnvironment(SECOND)

    def __call__(
        self,
        width: int = 4,
        calls: int = 8,
        *,
        tool: Latency = SECOND,
        model: Latency = SECOND,
        stop_after: float | None = None,
        **settings,
    ) -> Episode:
        async def play() -> Episode:
            self.environment = SimulatedEnvironment(tool)
            engine = SimulatedEngine(KimiChat(self.tokenizer), fan_out(width, calls), model)
            switch = StopSwitch()
            given = {"budget": BUDGET, "slots": Slots(), **settings}
            chosen = SwarmSettings(chat=KimiChat(self.tokenizer), pool=lambda trace: engine, switch=switch, **given)
            if stop_after is not None:
                asyncio.get_running_loop().call_later(stop_after, switch.stop)
            task = simulated_task(0)
            return await run_episode(task, self.environment, chosen, index=0, seed=0, critical_budget=0)

        return run_on(still, play())


@pytest.fixture
def play(tokenizer: Tokenizer) -> Play:
    return Play(tokenizer)


def test_without_limits_an_episode_takes_its_critical_path(play: Play):
    episode = play(width=4, calls=8)
    assert episode.status is EpisodeStatus.ANSWERED
    assert episode.wall_s == pytest.approx(
        2 + 2 * 2 + 1
    )  # two orchestrator turns, two calls, the sub-agents' last turn
    assert makespan(episode) == pytest.approx(episode.wall_s)


@pytest.mark.parametrize("cap", [1, 2, 3, 5])
def test_under_a_cap_an_episode_takes_what_list_scheduling_says(play: Play, cap: int):
    varied = Latency(median_s=1.0, sigma=0.5, stragglers=0.1, factor=5.0)
    free = play(width=9, calls=20, tool=varied, model=varied)
    capped = play(width=9, calls=20, tool=varied, model=varied, slots=Slots(cap))
    assert [trace.tokens for trace in capped.traces] == [trace.tokens for trace in free.traces]
    assert capped.wall_s == pytest.approx(makespan(free, cap))
    assert makespan(free) == pytest.approx(free.wall_s)


def test_at_most_so_many_tool_calls_are_under_way(play: Play):
    episode = play(width=6, calls=6, model=Latency(median_s=0.0), slots=Slots(None, 2))
    assert episode.wall_s == pytest.approx(3.0)


def test_a_sub_agents_deadline_ends_it_alone_and_keeps_its_turns(play: Play):
    episode = play(width=4, calls=5, limits=LimitsConfig(agent_s=3.5))  # the first has two calls, the others one
    ended, *others = episode.subagents
    assert (ended.status, ended.limit, ended.steps) == (TraceStatus.CANCELLED, "agent_s", 2)
    assert ended.turns[0].results and not ended.turns[1].results
    assert {trace.status for trace in others} == {TraceStatus.FINISHED}
    assert play.environment.cancelled == ["0/0"]
    assert [result.error for result in episode.orchestrator.turns[0].results] == [None, ErrorKind.TIMEOUT, *[None] * 3]
    assert episode.status is EpisodeStatus.ANSWERED and episode.wall_s == pytest.approx(1 + 3.5 + 1)
    assert makespan(episode) == pytest.approx(episode.wall_s)


def test_the_tightest_deadline_wins_and_is_named(play: Play):
    slow = {"width": 2, "calls": 20}
    cases = {"agent_s": (2.5, 7.0, 30.0), "stage_s": (7.0, 2.5, 30.0), "episode_s": (7.0, 7.0, 3.5)}
    for name, (agent_s, stage_s, episode_s) in cases.items():
        budget = BUDGET.model_copy(update={"episode_s": episode_s})
        episode = play(**slow, budget=budget, limits=LimitsConfig(agent_s=agent_s, stage_s=stage_s))
        assert {trace.limit for trace in episode.subagents} == {name}
        assert {trace.status for trace in episode.subagents} == {TraceStatus.CANCELLED}
        assert all(trace.steps for trace in episode.subagents)
    assert (episode.status, episode.limit) == (EpisodeStatus.FAILED, "episode_s")
    budget = BUDGET.model_copy(update={"call_s": 0.5})
    episode = play(width=2, calls=2, budget=budget)
    assert [trace.turns[0].deadline for trace in episode.traces] == ["", "call_s", "call_s"]
    assert {trace.status for trace in episode.traces} == {TraceStatus.FINISHED}


def test_a_stages_deadline_counts_the_time_in_the_queue(play: Play):
    episode = play(width=3, calls=3, slots=Slots(1), limits=LimitsConfig(stage_s=4.5))
    assert [trace.status for trace in episode.subagents] == [TraceStatus.FINISHED, *[TraceStatus.CANCELLED] * 2]
    assert [trace.steps for trace in episode.subagents] == [2, 1, 0]


def test_the_switch_ends_everything_and_tells_the_tools(play: Play, tmp_path):
    episode = play(width=3, calls=30, stop_after=4.5)
    assert (episode.status, episode.limit, episode.wall_s) == (EpisodeStatus.CANCELLED, "stopped", pytest.approx(4.5))
    assert {(trace.status, trace.limit) for trace in episode.traces} == {(TraceStatus.CANCELLED, "stopped")}
    assert play.environment.cancelled == ["0", "0/0", "0/1", "0/2"]
    assert [trace.steps for trace in episode.subagents] == [2] * 3
    store = EpisodeStore(tmp_path)
    store.write(1, [episode], policy_version=0)
    (read,), _ = store.read(1) or ([], 0)
    assert replace(read, task=episode.task) == episode


def test_an_episode_under_a_switch_that_was_thrown_does_not_begin(play: Play):
    episode = play(stop_after=0.0)
    assert episode.status is EpisodeStatus.CANCELLED and not episode.orchestrator.turns


def test_a_switch_that_was_thrown_ends_what_comes_under_it_at_once():
    async def play() -> tuple[str, float]:
        switch, deadline = StopSwitch(), Deadline()
        switch.stop()
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            async with deadline:
                switch.enter(deadline)
                await asyncio.sleep(5.0)
        return deadline.name, asyncio.get_running_loop().time() - began

    assert run_on(still, play()) == ("stopped", 0.0)


def test_a_timeout_of_something_else_is_not_taken_for_a_deadline(play: Play):
    episode = play(model=Latency(median_s=2000.0), limits=LimitsConfig(agent_s=5000.0), budget=BUDGET)
    assert (episode.status, episode.limit) == (EpisodeStatus.FAILED, "episode_s")


def test_of_two_deadlines_the_later_changes_nothing():
    async def play() -> str:
        deadline = Deadline("a", asyncio.get_running_loop().time() + 1.0)
        with pytest.raises(TimeoutError):
            async with deadline:
                deadline.tighten("b", 2.0)
                await asyncio.sleep(5.0)
        assert deadline.passed
        return deadline.name

    assert run_on(still, play()) == "a"
