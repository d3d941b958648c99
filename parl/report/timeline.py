"""One episode for the viewer: a lane per agent, turns placed by step and by time, edges, critical paths.

By step, an orchestrator's turn takes one column and its sub-agents start in the next; the stage ends with its
longest sub-agent. So the number of columns is the critical steps. All costs and paths are those of
:mod:`rollouts.critical_path`.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from statistics import median
from typing import Any

from rollouts.critical_path import critical_path, critical_steps, makespan, total_steps, trace_cost
from rollouts.episode import Episode, Trace, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Characters kept of a turn's text, a prompt, a message or arguments, and of a tool result."""

    text: int = 20_000
    result: int = 8_000

    def __call__(self, text: str, limit: int) -> str:
        """``text``, or its beginning and the number of characters left out."""
        return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters in the store)"


def episode_to_timeline(episode: Episode, cut: Cut | None = None) -> dict[str, Any]:
    """One episode as plain JSON data, without tokens. Agents are positions in ``agents``."""
    cut = cut or Cut()
    by_id = {trace.agent_id: trace for trace in episode.traces}
    columns: dict[str, list[int]] = {}
    _place(episode.orchestrator, 0, by_id, columns)
    paths = (set(critical_path(episode)), set(critical_path(episode, seconds=True)))
    place = {trace.agent_id: position for position, trace in enumerate(episode.traces)}
    spawns, joins = _edges(episode, place)
    oracle = episode.task.oracle
    return {
        "prompt": cut(episode.task.prompt, cut.text),
        "answer": cut(episode.answer, cut.text),
        "status": str(episode.status),
        "limit": episode.limit,
        "error": cut(episode.error, cut.text),
        "critical_steps": critical_steps(episode),
        "critical_budget": episode.critical_budget,
        "total_steps": total_steps(episode),
        "wall_s": round(episode.wall_s, 4),
        "makespan": round(makespan(episode), 4),
        "oracle": {"serial": oracle.serial_steps, "parallel": oracle.parallel_steps} if oracle else None,
        "rewards": _numbers(episode.rewards),
        "metrics": _numbers(episode.metrics),
        "stages": _stages(episode, by_id, place),
        "spawns": spawns,
        "joins": joins,
        "agents": [
            _agent(trace, columns.get(trace.agent_id, []), paths, place, episode, cut) for trace in episode.traces
        ],
    }  # fmt: skip


def _place(trace: Trace, column: int, by_id: dict[str, Trace], columns: dict[str, list[int]]) -> int:
    """Assign columns to the turns of ``trace`` and all below it, from ``column`` on; the first free one."""
    own = columns.setdefault(trace.agent_id, [])
    for turn in trace.turns:
        own.append(column)
        column += 1
        ends = [_place(by_id[agent_id], column, by_id, columns) for agent_id in turn.spawned]
        column = max(ends, default=column)
    return column


def _edges(episode: Episode, place: dict[str, int]) -> tuple[list[list[int]], list[list[int]]]:
    """(spawns, joins), both as [parent, its turn, child].

    A spawn leads from the parent's turn to the child's first, a join from the child's last turn to the
    parent's turn that reads its message (the number of turns if there is none).
    """
    spawns = [
        [place[trace.agent_id], index, place[child]]
        for trace in episode.traces
        for index, turn in enumerate(trace.turns)
        for child in turn.spawned
    ]
    return spawns, [[parent, index + 1, child] for parent, index, child in spawns]


def _stages(episode: Episode, by_id: dict[str, Trace], place: dict[str, int]) -> list[dict[str, Any]]:
    """Costs of each orchestrator turn: its sub-agents' longest and median, in steps and seconds."""
    stages = []
    for turn, children in episode.stages():
        steps = [trace_cost(child, by_id) for child in children]
        seconds = [_seconds(child) for child in children]
        stages.append(
            {
                "subagents": len(children),
                "steps": 1 + max(steps, default=0),
                "longest": place[children[steps.index(max(steps))].agent_id] if children else None,
                "median": median(steps) if steps else 0,
                "seconds": round(turn.t_end - turn.t_start, 4),
                "longest_s": place[children[seconds.index(max(seconds))].agent_id] if children else None,
                "median_s": round(median(seconds), 4) if seconds else 0,
            }
        )
    return stages


def _seconds(trace: Trace) -> float:
    """From an agent's first request to its last result."""
    return trace.turns[-1].t_end - trace.turns[0].t_start if trace.turns else 0.0


def _agent(
    trace: Trace,
    columns: list[int],
    paths: tuple[set[tuple[str, int]], ...],
    place: dict[str, int],
    episode: Episode,
    cut: Cut,
) -> dict[str, Any]:
    return {
        "id": trace.agent_id,
        "name": trace.name,
        "parent": None if trace.parent is None else place[trace.parent],
        "parent_turn": trace.parent_turn,
        "status": str(trace.status),
        "prompt": cut(trace.prompt, cut.text),
        "message": cut(trace.message, cut.text),
        "turns": [
            _turn(turn, column, [(trace.agent_id, index) in path for path in paths], place, episode, cut)
            for index, (turn, column) in enumerate(zip(trace.turns, columns, strict=True))
        ],
    }


def _turn(turn: Turn, column: int, on: list[bool], place: dict[str, int], episode: Episode, cut: Cut) -> dict[str, Any]:
    """``critical``: by step, by time. ``t``: asked, answered, results. ``child``: launched agent."""
    children = episode.launched(turn)
    return {
        "column": column,
        "critical": [int(yes) for yes in on],
        "t": [round(turn.t_start, 4), round(turn.t_model, 4), round(turn.t_end, 4)],
        "tokens": turn.end - turn.start,
        "text": cut(turn.content, cut.text),
        "calls": [
            {
                "name": call.name,
                "arguments": cut(json.dumps(call.arguments, ensure_ascii=False), cut.text),
                "child": None if child is None else place[child],
            }
            for call, child in zip(turn.calls, children, strict=True)
        ],
        "results": [
            {
                "text": cut(result.readable, cut.result),
                "error": str(result.error) if result.error else "",
                "s": round(result.latency_s, 4),
            }
            for result in turn.results
        ],
        "spawned": [place[agent_id] for agent_id in turn.spawned],
        "malformed": cut(turn.malformed, cut.text),
    }


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The finite numbers among ``values``, with four decimals."""
    return {
        name: round(float(value), 4)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
