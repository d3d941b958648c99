"""Critical steps and makespan against trees worked out by hand."""

import pytest

from envs.base import Gold, Role, Task, ToolCall, ToolResult
from rollouts.critical_path import (
    CriticalMeter,
    busy_seconds,
    critical_path,
    critical_steps,
    longest_subagent,
    makespan,
    tool_calls,
    total_steps,
)
from rollouts.episode import Episode, EpisodeStatus, Trace, Turn

TASK = Task(key="t", family="wide", split="test", prompt="p", gold=Gold(kind="exact", answers=("a",)))


def turn(seconds=1.0, *spawned, tool=None):
    """A turn of ``seconds`` model time; a spawning turn's own end (its join) must not count."""
    calls = [ToolCall(id=f"functions.assign_task:{i}", name="assign_task", arguments={}) for i, _ in enumerate(spawned)]
    results = [ToolResult(text="done", latency_s=99.0) for _ in spawned]
    if tool is not None:
        calls.append(ToolCall(id="functions.search:9", name="search", arguments={}))
        results.append(ToolResult(text="hit", latency_s=tool))
    end = 100.0 if spawned else seconds
    return Turn(
        start=0, end=1, calls=calls, results=results, spawned=list(spawned), t_start=0.0, t_model=seconds, t_end=end
    )


def tree(root, **subagents):
    """An episode; the keyword ``s0_1`` names the agent ``0/0/1``, the second child of the first sub-agent."""
    traces = [Trace(agent_id="0", role=Role.ORCHESTRATOR, turns=root)]
    for name, turns in subagents.items():
        agent_id = "0/" + name[1:].replace("_", "/")
        traces.append(
            Trace(agent_id=agent_id, role=Role.SUBAGENT, parent=agent_id.rsplit("/", 1)[0], parent_turn=0, turns=turns)
        )
    return Episode(task=TASK, index=0, seed=0, traces=traces, status=EpisodeStatus.ANSWERED)


SERIAL = tree([turn(1), turn(2), turn(3)])
# stage 1: 1 + max(2, 3); stage 2: 1
ONE_STAGE = tree([turn(1, "0/0", "0/1"), turn(1)], s0=[turn(2)] * 2, s1=[turn(1)] * 3)
# stage 1: 1 + 1, stage 2: 1 + max(2, 0), stage 3: 1
TWO_STAGES = tree([turn(1, "0/0"), turn(1, "0/1", "0/2"), turn(1)], s0=[turn(1)], s1=[turn(1)] * 2, s2=[])
# 0/0 costs (1 + max(1, 2)) + 1 = 4, 0/1 costs 3 turns: 1 + 4, then 1
NESTED = tree(
    [turn(1, "0/0", "0/1"), turn(1)],
    s0=[turn(1, "0/0/0", "0/0/1"), turn(1)],
    s1=[turn(1)] * 3,
    s0_0=[turn(1)],
    s0_1=[turn(1)] * 2,
)


@pytest.mark.parametrize(
    ("episode", "critical", "total"),
    [(SERIAL, 3, 3), (ONE_STAGE, 5, 7), (TWO_STAGES, 6, 6), (NESTED, 6, 10), (tree([]), 0, 0)],
)
def test_critical_and_total_steps_of_hand_computed_trees(episode, critical, total):
    assert critical_steps(episode) == critical
    assert total_steps(episode) == total


def test_a_subagent_without_turns_costs_nothing():
    assert critical_steps(tree([turn(1, "0/0"), turn(1)], s0=[])) == 2


def test_useless_spawns_beside_the_longest_branch_are_free_and_longer_ones_are_not():
    wider = tree([turn(1, "0/0", "0/1", "0/2"), turn(1)], s0=[turn()] * 2, s1=[turn()] * 3, s2=[turn()] * 3)
    assert critical_steps(wider) == critical_steps(ONE_STAGE)


def test_tool_calls_count_invocations_of_all_agents():
    assert tool_calls(tree([turn(1, "0/0", tool=0.5), turn(1)], s0=[turn(1)])) == 2


def test_the_longest_subagent_is_the_first_of_equals():
    assert longest_subagent(ONE_STAGE.subagents).agent_id == "0/1"
    assert longest_subagent(wide_traces(3)).agent_id == "0/0"
    assert longest_subagent([]) is None


def wide_traces(count):
    return [Trace(agent_id=f"0/{i}", role=Role.SUBAGENT, turns=[turn()]) for i in range(count)]


def test_the_online_meter_agrees_with_the_finished_tree():
    meter = CriticalMeter()
    assert meter.running([1, 0]) == 2  # in flight: nothing is booked yet
    assert meter.steps == 0
    assert [meter.stage([1]), meter.stage([2, 0]), meter.stage()] == [2, 5, 6]
    assert meter.steps == critical_steps(TWO_STAGES)


def test_the_meter_leaves_subagents_what_the_budget_leaves_and_one_turn_to_answer():
    meter = CriticalMeter(steps=4)
    assert meter.allowance(10) == 4  # 4 so far + this turn + 4 + the answer = 10
    assert meter.allowance(5) == 0
    assert meter.allowance(0) is None


@pytest.mark.parametrize(
    ("episode", "cap", "seconds"),
    [
        (SERIAL, None, 6.0),
        (ONE_STAGE, None, 6.0),  # 1 + max(4, 3) + 1
        (ONE_STAGE, 2, 6.0),
        (ONE_STAGE, 1, 9.0),  # 1 + (4 + 3) + 1
        (TWO_STAGES, None, 6.0),
        (NESTED, None, 6.0),  # 0/0: 1 + 2 + 1 = 4
        # cap 1: orchestrator 0-1; 0/0 1-2 joins and frees the slot; 0/1 2-5; 0/0/0 5-6; 0/0/1 6-8; 0/0 8-9; answer 9-10
        (NESTED, 1, 10.0),
        (tree([turn(1, "0/0"), turn(1)], s0=[]), 1, 2.0),
        (tree([turn(1, "0/0"), turn(1, "0/1"), turn(1)], s0=[turn(2)], s1=[turn(3)]), 1, 8.0),
        (tree([]), None, 0.0),
    ],
)
def test_makespan_of_hand_computed_schedules(episode, cap, seconds):
    assert makespan(episode, cap) == pytest.approx(seconds)


def test_makespan_uses_greedy_launch_order_not_the_best_order():
    # two slots, durations 1, 1, 2 in launch order: 0/2 starts at 1 and ends at 3 (the best order would end at 2)
    episode = tree([turn(0, "0/0", "0/1", "0/2")], s0=[turn(1)], s1=[turn(1)], s2=[turn(2)])
    assert makespan(episode, 2) == pytest.approx(3.0)


def test_direct_tools_of_a_spawning_turn_run_beside_the_subagents():
    assert makespan(tree([turn(1, "0/0", tool=5.0)], s0=[turn(2)])) == pytest.approx(6.0)
    assert makespan(tree([turn(1, "0/0", tool=1.0)], s0=[turn(2)])) == pytest.approx(3.0)


def test_a_cap_of_zero_is_refused():
    with pytest.raises(ValueError, match="concurrency"):
        makespan(SERIAL, 0)


@pytest.mark.parametrize("episode", [SERIAL, ONE_STAGE, TWO_STAGES, NESTED, tree([])])
def test_the_path_is_as_long_as_critical_steps_and_makespan_say(episode):
    assert len(critical_path(episode)) == critical_steps(episode)
    path = critical_path(episode, seconds=True)
    turns = [episode.trace(agent_id).turns[index] for agent_id, index in path]
    assert sum(busy_seconds(turn)[0] for turn in turns) == pytest.approx(makespan(episode))


def test_the_path_goes_through_the_longest_subagent_by_steps_or_by_seconds():
    assert critical_path(ONE_STAGE) == [("0", 0), ("0/1", 0), ("0/1", 1), ("0/1", 2), ("0", 1)]
    assert critical_path(ONE_STAGE, seconds=True) == [("0", 0), ("0/0", 0), ("0/0", 1), ("0", 1)]
    assert critical_path(NESTED) == [("0", 0), ("0/0", 0), ("0/0/1", 0), ("0/0/1", 1), ("0/0", 1), ("0", 1)]
    twins = tree([turn(1, "0/0", "0/1")], s0=[turn(2)], s1=[turn(2)])
    assert critical_path(twins) == critical_path(twins, seconds=True) == [("0", 0), ("0/0", 0)]  # the first of equals
    slow_tool = tree([turn(1, "0/0", tool=5.0)], s0=[turn(2)])
    assert critical_path(slow_tool, seconds=True) == [("0", 0)]  # the tool beside the sub-agent took longer
