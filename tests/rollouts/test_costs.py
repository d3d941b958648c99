"""Path tokens and modelled seconds against trees worked out by hand."""

from __future__ import annotations

import pytest

from envs.base import Gold, Role, Task, ToolCall
from rollouts.costs import (
    COSTS,
    LatencyModel,
    calls_in_parallel,
    costs_of,
    modelled_makespan,
    path_tokens,
    tokens_per_success,
)
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode, EpisodeStatus, Trace, Turn

TASK = Task(key="t", family="wide", split="test", prompt="p", gold=Gold(kind="exact", answers=("a",)))
LATENCY = LatencyModel(first_token_s=0.0, decode_s=0.1, prefill_s=0.01, tool_s=2.0, concurrency=2)


def trace(agent_id: str, *turns: tuple[int, int, str, tuple[str, ...]], cuts: tuple[int, ...] = ()) -> Trace:
    """Turns as (start, end, tool called or empty, agents spawned)."""
    made = []
    for start, end, tool, spawned in turns:
        names = ["assign_task"] * len(spawned) + ([tool] if tool else [])
        calls = [ToolCall(id=f"functions.{name}:{i}", name=name, arguments={}) for i, name in enumerate(names)]
        made.append(Turn(start=start, end=end, calls=calls, spawned=list(spawned), t_end=99.0))
    role = Role.SUBAGENT if "/" in agent_id else Role.ORCHESTRATOR
    parent = "0" if "/" in agent_id else None
    return Trace(agent_id=agent_id, role=role, parent=parent, turns=made, cuts=list(cuts))


def episode(*traces: Trace) -> Episode:
    return Episode(task=TASK, index=0, seed=0, traces=list(traces), status=EpisodeStatus.ANSWERED)


SERIAL = episode(trace("0", (100, 110, "search", ()), (160, 165, "", ())))
# the longest in turns (0/0: 3 turns, 6 tokens) is not the longest in tokens (0/1: 1 turn, 50 tokens)
SWARM = episode(
    trace("0", (100, 120, "", ("0/0", "0/1", "0/2")), (150, 160, "", ())),
    trace("0/0", (10, 12, "search", ()), (20, 22, "open", ()), (30, 32, "", ())),
    trace("0/1", (10, 60, "", ())),
    trace("0/2", (10, 20, "", ())),
)


def test_path_tokens_follow_the_subagent_with_most_tokens_of_each_stage():
    assert path_tokens(SERIAL) == 15
    assert path_tokens(SWARM) == 20 + 50 + 10
    assert critical_steps(SWARM) == 1 + 3 + 1


def test_path_tokens_of_a_tree():
    nested = episode(
        trace("0", (5, 8, "", ("0/0", "0/1"))),
        trace("0/0", (0, 2, "", ("0/2",)), (4, 5, "", ())),
        trace("0/1", (0, 6, "", ())),
        trace("0/2", (0, 7, "", ())),
    )
    assert path_tokens(nested) == 3 + max(2 + 7 + 1, 6)


def test_seconds_are_new_prompt_tokens_sampled_tokens_and_tools():
    # 100 new tokens, 10 sampled, tools; then 50 new ones, 5 sampled
    assert modelled_makespan(SERIAL, LATENCY) == pytest.approx((1.0 + 1.0 + 2.0) + (0.5 + 0.5))


def test_every_turn_waits_for_its_first_token():
    waiting = LATENCY.model_copy(update={"first_token_s": 10.0})
    assert modelled_makespan(SERIAL, waiting) == pytest.approx(modelled_makespan(SERIAL, LATENCY) + 2 * 10.0)


def test_a_new_context_is_read_as_a_whole():
    cut = episode(trace("0", (100, 110, "search", ()), (190, 195, "", ()), cuts=(150,)))
    assert modelled_makespan(cut, LATENCY) == pytest.approx((1.0 + 1.0 + 2.0) + (0.4 + 0.5))


def test_seconds_of_a_stage_are_those_of_its_slowest_subagent():
    own, answer = 1.0 + 2.0, 0.3 + 1.0
    slowest = (0.1 + 0.2 + 2.0) + (0.08 + 0.2 + 2.0) + (0.08 + 0.2)
    assert modelled_makespan(SWARM, LATENCY) == pytest.approx(own + max(slowest, 0.1 + 5.0) + answer)


def test_direct_tools_of_a_spawning_turn_take_their_time_beside_the_subagents():
    quick = episode(trace("0", (0, 10, "search", ("0/0",))), trace("0/0", (0, 1, "", ())))
    assert modelled_makespan(quick, LATENCY) == pytest.approx(1.0 + 2.0)


def test_creating_a_subagent_takes_no_time_of_a_tool():
    alone = episode(trace("0", (0, 10, "create_subagent", ())))
    assert modelled_makespan(alone, LATENCY) == pytest.approx(1.0)


def test_the_cap_lets_subagents_wait():
    # two slots: 0/0 takes 4.86 s, 0/1 5.1 s; 0/2 (1.1 s) begins when 0/0 is done and ends at 5.96
    first, third = (0.1 + 0.2 + 2.0) + (0.08 + 0.2 + 2.0) + (0.08 + 0.2), 0.1 + 1.0
    capped = modelled_makespan(SWARM, LATENCY, capped=True)
    assert capped == pytest.approx(1.0 + 2.0 + first + third + 0.3 + 1.0)
    roomy = LATENCY.model_copy(update={"concurrency": 3})
    assert modelled_makespan(SWARM, roomy, capped=True) == modelled_makespan(SWARM, roomy)


def test_costs_do_not_depend_on_the_clock():
    found = costs_of(SWARM, LATENCY)
    assert tuple(found) == COSTS and found["total_tokens"] == 30 + 6 + 50 + 10
    for one in SWARM.traces:
        for turn in one.turns:
            turn.t_model, turn.t_end = 7.0, 8.0
    assert costs_of(SWARM, LATENCY) == found


def test_tokens_by_success_count_the_failed_attempts_too():
    def attempt(success: float | None, tokens: int) -> Episode:
        made = episode(trace("0"))
        made.metrics = {"total_tokens": tokens} | ({} if success is None else {"success": success})
        return made

    assert tokens_per_success([attempt(1, 10), attempt(0, 20), attempt(1, 30), attempt(None, 99)]) == 30.0
    assert tokens_per_success([attempt(0, 20)]) is None
    assert tokens_per_success([]) is None


def test_only_the_orchestrators_own_calls_count_as_calls_in_parallel():
    search = ToolCall(id="functions.search:0", name="search", arguments={})
    assert not calls_in_parallel(SWARM) and not calls_in_parallel(SERIAL)
    one, two = (episode(trace("0", (0, 10, "search", ()), (20, 30, "", ()))) for _ in range(2))
    two.orchestrator.turns[0].calls.append(search)
    assert calls_in_parallel(two) and not calls_in_parallel(one)
    below = episode(trace("0", (0, 10, "", ("0/0",))), trace("0/0", (0, 5, "search", ())))
    below.subagents[0].turns[0].calls.append(search)
    assert not calls_in_parallel(below)
