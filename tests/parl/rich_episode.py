"""An episode with every field, and the difference of two episodes, for round trips through formats."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from envs.base import ErrorKind, Gold, Oracle, Role, Task, ToolCall, ToolResult
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.prompts import ASSIGN_TASK, CREATE_SUBAGENT

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20


def _call(name: str, number: int, /, **arguments: Any) -> ToolCall:
    return ToolCall(id=f"functions.{name}:{number}", name=name, arguments=arguments)


def _tokens(trace: Trace, spans: list[tuple[int, int]], tail: int = 0) -> Trace:
    """Fill the arrays: for every turn how many tokens are read before it and how many sampled."""
    rng = np.random.default_rng(len(trace.agent_id))
    for turn, (read, sampled) in zip(trace.turns, spans, strict=True):
        trace.mask += [False] * read + [True] * sampled
        turn.start, turn.end = len(trace.mask) - sampled, len(trace.mask)
    trace.mask += [False] * tail
    count = len(trace.mask)
    trace.tokens = rng.integers(0, 1000, count).tolist()
    trace.logprobs = [float(np.float32(-rng.random())) if sampled else 0.0 for sampled in trace.mask]
    trace.versions = [3 + (place > 12) if sampled else -1 for place, sampled in enumerate(trace.mask)]
    trace.routes = rng.integers(0, 8, (count, 2, 2)).astype(np.int16)
    return trace


def _timed(turns: list[Turn], begin: float) -> list[Turn]:
    for number, turn in enumerate(turns):
        turn.t_start, turn.t_model, turn.t_end = begin + number, begin + number + 0.25, begin + number + 0.75
    return turns


def rich_episode() -> Episode:
    """Two sub-agents, one cancelled, a refused launch, a failed tool call, a picture, a malformed last turn."""
    task = Task(
        key="task-7",
        family="wide",
        split="val",
        prompt="Report the age of each.",
        gold=Gold(kind="table", columns=("Name", "Age"), unique_columns=("Name",), rows=(("Ada", "36"),)),
        oracle=Oracle(serial_steps=9, parallel_steps=5, width=2),
        width=2,
        plan={"steps": [1]},
    )
    assigned = [_call(ASSIGN_TASK, i, agent="reader", prompt=f"Read page {i}.") for i in range(3)]
    root = Trace(agent_id="0", role=Role.ORCHESTRATOR, name="orchestrator", prompt=task.prompt, trainable=True)
    root.turns = [
        Turn(
            start=0,
            end=0,
            content="First a helper.",
            calls=[
                _call(CREATE_SUBAGENT, 0, name="reader", system_prompt="You read."),
                _call("search", 1, query='api_key="sk-abcdefghijklmnopqrstuv"'),
            ],
            results=[
                ToolResult(text="created"),
                ToolResult(text="error: server", error=ErrorKind.SERVER, latency_s=0.5, images=(PNG,)),
            ],
        ),
        Turn(
            start=0,
            end=0,
            calls=assigned,
            results=[
                ToolResult(text="36", latency_s=2.0),
                ToolResult(text="error: sub-agent failed", error=ErrorKind.BUDGET, latency_s=1.0),
                ToolResult(text="error: too many sub-agents", error=ErrorKind.BUDGET),
            ],
            spawned=["0/0", "0/1"],
        ),
        Turn(start=0, end=0, content="half a call", malformed="the turn did not end"),
    ]
    _timed(root.turns, 0.5)
    root.status, root.media_at = TraceStatus.MALFORMED, [13]
    readers = []
    for number, status in enumerate((TraceStatus.FINISHED, TraceStatus.CANCELLED)):
        trace = Trace(
            agent_id=f"0/{number}", role=Role.SUBAGENT, name="reader", parent="0", parent_turn=1, status=status
        )
        trace.prompt = f"Read page {number}."
        shown = ToolResult(text="a page", latency_s=0.125, images=(PNG,))
        trace.turns = [Turn(start=0, end=0, calls=[_call("open_page", 0, id=number)], results=[shown])]
        if number == 0:
            trace.turns.append(Turn(start=0, end=0, content="36"))
            trace.message = "36"
        trace.media_at = [9]
        _timed(trace.turns, 1.75)
        readers.append(_tokens(trace, [(5, 4), (6, 3)][: len(trace.turns)], tail=0 if number == 0 else 6))
    _tokens(root, [(7, 5), (4, 6), (8, 3)])
    return Episode(
        task=task,
        index=2,
        seed=11,
        traces=[root, *readers],
        status=EpisodeStatus.MALFORMED,
        answer="",
        limit="critical_steps",
        error="",
        critical_budget=12,
        wall_s=3.5,
        rewards={"perf": 0.25, "total": 0.125},
        metrics={"item_f1": 0.25},
    )


def difference(first: Episode, second: Episode) -> set[str]:
    """``part.field`` of everything in ``first`` that ``second`` lacks or has differently."""
    found = _fields("task", first.task, second.task, ()) | _fields(
        "episode", first, second, ("task", "traces", "metrics")
    )
    theirs = {trace.agent_id: trace for trace in second.traces}
    if [trace.agent_id for trace in first.traces] != [trace.agent_id for trace in second.traces]:
        found.add("episode.traces")
    for trace in first.traces:
        if trace.agent_id not in theirs:
            continue
        other = theirs[trace.agent_id]
        found |= _fields("trace", trace, other, ("turns",))
        if len(trace.turns) != len(other.turns):
            found.add("trace.turns")
        for turn, its in zip(trace.turns, other.turns, strict=False):
            found |= _fields("turn", turn, its, ("results",))
            if len(turn.results) != len(its.results):
                found.add("turn.results")
            for result, its_result in zip(turn.results, its.results, strict=False):
                found |= _fields("result", result, its_result, ())
    return found


def _fields(part: str, first: Any, second: Any, without: tuple[str, ...]) -> set[str]:
    names = [field.name for field in fields(first) if field.name not in without]
    return {f"{part}.{name}" for name in names if not _same(getattr(first, name), getattr(second, name))}


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return first is not None and second is not None and np.array_equal(first, second)
    return first == second
