"""Episodes as the report draws them: a lane per agent, turns placed by step and by time, the critical path marked.

By step, an orchestrator's turn takes one column and what it launched starts in the next; the stage ends when its
longest sub-agent has. The columns of the whole episode are its critical steps, by construction.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rollouts.critical_path import critical_steps, total_steps, trace_cost
from rollouts.episode import Episode, Trace, Turn

_TEXT, _RESULT = 1500, 600  # characters kept of a turn's text and of one tool result


def write_timelines(run_dir: Path, episodes: Iterable[Episode], policy: str = "trained") -> Path:
    """Write ``timelines.json`` of a run from a few episodes; the first is shown first."""
    path = Path(run_dir) / "timelines.json"
    timelines = [episode_to_timeline(episode, policy) for episode in episodes]
    path.write_text(json.dumps(timelines, ensure_ascii=False), encoding="utf-8")
    return path


def episode_to_timeline(episode: Episode, policy: str = "trained") -> dict[str, Any]:
    """One episode as plain JSON data; ``policy`` says whose it is."""
    by_id = {trace.agent_id: trace for trace in episode.traces}
    placed: dict[str, list[tuple[int, bool]]] = {}  # agent id -> its turns' (column, on the critical path)
    _place(episode.orchestrator, 0, True, by_id, placed)
    oracle = episode.task.oracle
    return {
        "policy": policy,
        "task": episode.task.key,
        "family": episode.task.family,
        "width": episode.task.width,
        "prompt": _cut(episode.task.prompt, _TEXT),
        "answer": _cut(episode.answer, _TEXT),
        "status": str(episode.status),
        "limit": episode.limit,
        "critical_steps": critical_steps(episode),
        "total_steps": total_steps(episode),
        "oracle": {"serial": oracle.serial_steps, "parallel": oracle.parallel_steps} if oracle else None,
        "rewards": {name: round(float(value), 4) for name, value in episode.rewards.items()},
        "agents": [_agent(trace, placed.get(trace.agent_id, [])) for trace in episode.traces],
    }


def _place(
    trace: Trace, column: int, critical: bool, by_id: dict[str, Trace], placed: dict[str, list[tuple[int, bool]]]
) -> int:
    """Give the turns of ``trace`` and of all below it their columns, from ``column`` on; returns the first free one."""
    own = placed.setdefault(trace.agent_id, [])
    for turn in trace.turns:
        own.append((column, critical))
        column += 1
        children = [by_id[agent_id] for agent_id in turn.spawned if agent_id in by_id]
        costs = [trace_cost(child, by_id) for child in children]
        longest = costs.index(max(costs)) if costs and max(costs) > 0 else -1
        ends = [_place(child, column, critical and i == longest, by_id, placed) for i, child in enumerate(children)]
        column = max(ends, default=column)
    return column


def _agent(trace: Trace, columns: list[tuple[int, bool]]) -> dict[str, Any]:
    return {
        "id": trace.agent_id,
        "name": trace.name,
        "role": str(trace.role),
        "parent": trace.parent,
        "parent_turn": trace.parent_turn,
        "status": str(trace.status),
        "prompt": _cut(trace.prompt, _TEXT),
        "message": _cut(trace.message, _TEXT),
        "critical": any(critical for _, critical in columns),
        "turns": [_turn(turn, *place) for turn, place in zip(trace.turns, columns, strict=True)],
    }


def _turn(turn: Turn, column: int, critical: bool) -> dict[str, Any]:
    return {
        "column": column,
        "critical": critical,
        "t": [round(turn.t_start, 4), round(turn.t_model, 4), round(turn.t_end, 4)],
        "tokens": turn.end - turn.start,
        "text": _cut(turn.content, _TEXT),
        "calls": [
            {"name": call.name, "arguments": _cut(json.dumps(call.arguments, ensure_ascii=False), _RESULT)}
            for call in turn.calls
        ],
        "results": [
            {"text": _cut(result.text, _RESULT), "error": str(result.error) if result.error else ""}
            for result in turn.results
        ],
        "spawned": list(turn.spawned),
        "malformed": turn.malformed,
    }


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + " …"
