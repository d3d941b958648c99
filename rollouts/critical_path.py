"""The cost of an episode: critical steps, total steps, and its duration under a concurrency cap.

Pure functions of an ``Episode``. A step is one turn (one model call). The critical steps are those of the
Kimi K2.5 report, section on Agent Swarm:

    CriticalSteps = Σ_t ( S_main(t) + max_i S_sub,i(t) )

over the stages t of the orchestrator, with S_main(t) = 1 turn and the maximum over the sub-agents launched in
that turn (0 if none). A sub-agent that itself spawns costs by the same sum instead of its number of turns.

Steps ignore queueing. ``makespan`` replays the turns' durations, measured or modelled (``rollouts.costs``), with
at most C sub-agents at once.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rollouts.episode import Episode, Trace, Turn

# Of a trace and the index of its turn: (own seconds, seconds of direct tools in parallel to the sub-agents)
TurnSeconds = Callable[[Trace, int], tuple[float, float]]


def critical_steps(episode: Episode) -> int:
    """K2.5's critical steps of the episode, in turns: Σ over stages of (1 + longest sub-agent)."""
    return trace_cost(episode.orchestrator, {trace.agent_id: trace for trace in episode.traces})


def trace_cost(trace: Trace, by_id: Mapping[str, Trace]) -> int:
    """Critical steps of one agent and all that it launched; ``by_id``: the episode's traces by agent id."""
    meter = CriticalMeter()
    for turn in trace.turns:
        meter.stage(trace_cost(by_id[agent_id], by_id) for agent_id in turn.spawned)
    return meter.steps


@dataclass(slots=True)
class CriticalMeter:
    """The same sum, updated while an agent runs. ``steps`` counts the finished stages."""

    steps: int = 0

    def stage(self, subagent_costs: Iterable[int] = ()) -> int:
        """Add one finished turn and the costs of the sub-agents it launched; returns the critical steps so far."""
        self.steps = self.running(subagent_costs)
        return self.steps

    def running(self, subagent_costs: Iterable[int] = ()) -> int:
        """Critical steps if the current turn ended now, with sub-agents at ``subagent_costs``."""
        return self.steps + 1 + max(subagent_costs, default=0)

    def allowance(self, budget: int) -> int | None:
        """Steps for each sub-agent launched in the current turn that leave one turn to answer.

        None if ``budget`` is 0 (unlimited); never negative.
        """
        return max(budget - self.steps - 2, 0) if budget else None


def total_steps(episode: Episode) -> int:
    """Turns of all agents together."""
    return sum(trace.steps for trace in episode.traces)


def tool_calls(episode: Episode) -> int:
    """Tool invocations of all agents together, spawning calls included (the count of K2.5 report E.8)."""
    return sum(trace.tool_calls for trace in episode.traces)


def longest_subagent(traces: Iterable[Trace]) -> Trace | None:
    """The trace with most steps of its own, the first of equals; None without any."""
    return max(traces, key=lambda trace: trace.steps, default=None)


def makespan(episode: Episode, concurrency: int | None = None, *, seconds: TurnSeconds | None = None) -> float:
    """Seconds of the episode's turns with at most ``concurrency`` sub-agents running (None = no cap).

    Greedy list schedule: a sub-agent starts as soon as it is launched and a slot is free, in the order of
    launches. An agent that waits for its own sub-agents holds no slot; the orchestrator never needs one. A
    turn without spawning lasts ``t_end - t_start``; one that spawns lasts its model time and then the longer
    of its direct tool calls (``latency_s``) and its sub-agents. Gaps between turns do not count, so without a
    cap this is the critical path in seconds. ``seconds``: durations of turns instead of the measured ones.
    """
    if concurrency is not None and concurrency < 1:
        raise ValueError(f"concurrency must be at least 1 or None, not {concurrency}")
    return _Schedule(episode, concurrency, seconds or _measured).run()


def critical_path(episode: Episode, *, seconds: bool = False) -> list[tuple[str, int]]:
    """The turns on the critical path, as (agent id, index of its turn), in order.

    By steps, their number is ``critical_steps``. With ``seconds``, their own seconds (and a direct tool
    call's, where a turn waited longer for it than for any sub-agent) add up to the ``makespan`` without a
    cap. Of equally long sub-agents the first counts.
    """
    by_id = {trace.agent_id: trace for trace in episode.traces}
    costs: dict[str, float] = {}
    return _path(episode.orchestrator, by_id, costs, seconds)


def _path(trace: Trace, by_id: Mapping[str, Trace], costs: dict[str, float], seconds: bool) -> list[tuple[str, int]]:
    """The path through ``trace``; leaves its cost in ``costs``."""
    path: list[tuple[str, int]] = []
    total = 0.0
    for index, turn in enumerate(trace.turns):
        path.append((trace.agent_id, index))
        own, longest = busy_seconds(turn) if seconds else (1.0, 0.0)
        inside: list[tuple[str, int]] = []
        for agent_id in turn.spawned:
            below = _path(by_id[agent_id], by_id, costs, seconds)
            if costs[agent_id] > longest:
                longest, inside = costs[agent_id], below
        path += inside
        total += own + longest
    costs[trace.agent_id] = total
    return path


def _measured(trace: Trace, index: int) -> tuple[float, float]:
    return busy_seconds(trace.turns[index])


def busy_seconds(turn: Turn) -> tuple[float, float]:
    """(own seconds, seconds of direct tools in parallel to the sub-agents) of a turn."""
    if not turn.spawned:
        return turn.t_end - turn.t_start, 0.0
    direct = [r.latency_s for c, r in zip(turn.calls, turn.results, strict=False) if c.name != "assign_task"]
    return turn.t_model - turn.t_start, max(direct, default=0.0)


class _Schedule:
    """Event simulation for ``makespan``: every agent alternates between a turn and joining what it spawned."""

    def __init__(self, episode: Episode, concurrency: int | None, seconds: TurnSeconds) -> None:
        self.seconds = seconds
        self.by_id = {trace.agent_id: trace for trace in episode.traces}
        self.root = episode.orchestrator.agent_id
        self.free = float("inf") if concurrency is None else concurrency
        self.waiting: deque[str] = deque()  # sub-agents ready for a slot
        self.turn = dict.fromkeys(self.by_id, 0)  # next turn of each agent
        self.joining = dict.fromkeys(self.by_id, 0)  # children and direct tools that an agent waits for
        self.events: list[tuple[float, int, str, str]] = []  # (time, order, what happens, agent)
        self.order = 0
        self.now = 0.0

    def run(self) -> float:
        self._begin(self.root)
        while self.events:
            self.now, _, what, agent = heapq.heappop(self.events)
            if what == "turn":
                self._turn_done(agent)
            else:
                self._joined(agent)
            while self.waiting and self.free > 0:
                self.free -= 1
                self._begin(self.waiting.popleft())
        return self.now

    def _at(self, seconds: float, what: str, agent: str) -> None:
        self.order += 1
        heapq.heappush(self.events, (self.now + seconds, self.order, what, agent))

    def _begin(self, agent: str) -> None:
        """Run the agent's next turn, or finish it after the last."""
        turns = self.by_id[agent].turns
        if self.turn[agent] < len(turns):
            self._at(self.seconds(self.by_id[agent], self.turn[agent])[0], "turn", agent)
            return
        if agent != self.root:
            self.free += 1
            parent = self.by_id[agent].parent
            if parent is not None:
                self._at(0.0, "join", parent)

    def _turn_done(self, agent: str) -> None:
        number = self.turn[agent]
        turn = self.by_id[agent].turns[number]
        self.turn[agent] = number + 1
        if not turn.spawned:
            self._begin(agent)
            return
        if agent != self.root:
            self.free += 1
        self.waiting.extend(turn.spawned)
        self.joining[agent] = len(turn.spawned) + 1
        self._at(self.seconds(self.by_id[agent], number)[1], "join", agent)

    def _joined(self, agent: str) -> None:
        self.joining[agent] -= 1
        if self.joining[agent]:
            return
        if agent == self.root:
            self._begin(agent)
        else:
            self.waiting.append(agent)
