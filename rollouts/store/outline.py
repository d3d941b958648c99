"""Stored episodes without tokens: enough for scoring, listing and searching, and read many times faster.

An outline is an :class:`Episode` whose traces have empty token arrays. Turns keep their spans, so sampled
tokens can be counted; with ``texts=False`` turns have no contents, results and call arguments. The shard's
binary columns are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.base import Role, Task, ToolCall
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.store.check import check_agents
from rollouts.store.store import SHARD_NAME, StoreError, open_shard, read_rows, score_of, tool_result

_JSON = ("task", "traces", "rewards", "metrics")
_PLAIN = ("index", "seed", "answer", "limit", "error", "critical_budget", "wall_s")
_COLUMNS = ("task_key", "status", "score", *_PLAIN, *_JSON)
_ROLES = {str(role): role for role in Role}
_STATUSES = {str(status): status for status in TraceStatus}


@dataclass(slots=True, kw_only=True)
class Outline:
    """A stored episode and its location."""

    episode: Episode
    path: Path
    row: int  # position in the shard
    kind: str
    step: int
    policy_version: int
    lengths: list[int]  # tokens of each trace

    @property
    def ref(self) -> str:
        """Its name: ``train-000012:5``, shard and row."""
        return f"{self.path.stem}:{self.row}"


def shard_paths(folder: Path, kind: str | None = None) -> list[Path]:
    """The shards of a store's folder, optionally of one ``kind``; by kind, then by step."""
    found = [(name, path) for path in folder.iterdir() if (name := SHARD_NAME.fullmatch(path.name))]
    found = [(name, path) for name, path in found if kind in (None, name[1])]
    return [path for name, path in sorted(found, key=lambda pair: (pair[0][1], int(pair[0][2])))]


def read_outlines(paths: Iterable[Path], *, texts: bool = True) -> Iterator[Outline]:
    """The episodes of ``paths``, in order, a few in memory at a time; StoreError names what is damaged."""
    tasks: dict[str, Task] = {}
    for path in paths:
        with open_shard(path) as (file, meta):
            place = {"path": Path(path), "kind": meta["kind"], "step": int(meta["step"])}
            place["policy_version"] = int(meta["policy_version"])
            for row, values in enumerate(read_rows(path, file, _COLUMNS)):
                yield _outline(values, tasks, texts, row, place)


def _outline(row: dict[str, Any], tasks: dict[str, Task], texts: bool, number: int, place: dict[str, Any]) -> Outline:
    where = f"{place['path']}: episode {number} ({row['task_key']}#{row['index']})"
    key = row["task"]
    try:
        if key not in tasks:
            tasks[key] = Task.from_row(_loads("task", key))
        traces = _loads("traces", row["traces"])
        episode = Episode(
            **{name: row[name] for name in _PLAIN},
            task=tasks[key],
            status=EpisodeStatus(row["status"]),
            traces=[_trace(trace, texts) for trace in traces],
            rewards=_loads("rewards", row["rewards"]),
            metrics=_loads("metrics", row["metrics"]),
            score=score_of(row.get("score")),
        )
        check_agents(episode.traces)
        lengths = [trace["length"]["tokens"] for trace in traces]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        text = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise StoreError(f"{where}: {text}") from error
    return Outline(episode=episode, row=number, lengths=lengths, **place)


def _loads(column: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"column {column!r}, offset {error.pos}: not JSON ({error.msg})") from None


def _trace(data: dict[str, Any], texts: bool) -> Trace:
    return Trace(
        agent_id=data["agent_id"],
        role=_ROLES[data["role"]],
        name=data["name"],
        parent=data["parent"],
        parent_turn=data["parent_turn"],
        prompt=data["prompt"],
        status=_STATUSES[data["status"]],
        message=data["message"],
        trainable=data["trainable"],
        turns=[_full_turn(turn) if texts else _bare_turn(turn) for turn in data["turns"]],
        media_at=data.get("media_at") or [],
        limit=data.get("limit", ""),
        cuts=data.get("cuts") or [],
    )


def _bare_turn(data: dict[str, Any]) -> Turn:
    calls = [_CALLS.get(call[1]) or _CALLS.setdefault(call[1], _call(call[1])) for call in data["calls"]]
    return Turn(
        start=data["start"],
        end=data["end"],
        calls=calls,
        spawned=data["spawned"],
        malformed=data["malformed"],
        t_start=data["t_start"],
        t_model=data["t_model"],
        t_end=data["t_end"],
        deadline=data.get("deadline", ""),
    )


def _call(name: str) -> ToolCall:
    return ToolCall(id="", name=name, arguments={})


_CALLS: dict[str, ToolCall] = {}  # calls without arguments, shared by name


def _full_turn(data: dict[str, Any]) -> Turn:
    turn = _bare_turn(data)
    turn.content = data["content"]
    turn.calls = [ToolCall(id=i, name=name, arguments=arguments) for i, name, arguments in data["calls"]]
    turn.results = [tool_result(*values) for values in data["results"]]
    return turn
