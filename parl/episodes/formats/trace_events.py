"""Trace events (the JSON of Chrome's profiler) of one episode, for ui.perfetto.dev and chrome://tracing.

One process is the episode, one thread per agent: a slice for every model turn (``model``) and every call
(``tool``, ``spawn``), arrows from the call that launches a sub-agent to its first turn and from its last turn
back. The thread *critical path* on top shows what the episode waited for at each moment; the same slices have
the category ``critical`` on the agents' threads. Times are microseconds since the episode's start. Export
only.

Format: "Trace Event Format" (Google, 2016), phases M (names), X (slices), s and f (arrows).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from parl.episodes.formats.common import ExportOptions, dumps
from rollouts.critical_path import critical_path, critical_steps
from rollouts.episode import Episode, Trace, Turn

PROCESS, CRITICAL_THREAD = 1, 0
_TEXT = 2000  # characters of a turn, of arguments and of a result
_COLOUR = "terrible"  # Chrome's red; Perfetto colours by name
_ORDER = {"M": 0, "X": 1, "s": 2, "f": 3}  # order of events at the same time


def export(episode: Episode, options: ExportOptions) -> dict[str, Any]:
    """The episode as one object with ``traceEvents``, sorted by time, enclosing slices first."""
    threads = {trace.agent_id: number for number, trace in enumerate(episode.traces, CRITICAL_THREAD + 1)}
    critical = set(critical_path(episode, seconds=True))
    events = [*_names(episode, threads), *_arrows(episode, threads)]
    for trace in episode.traces:
        for number, turn in enumerate(trace.turns):
            on_path = (trace.agent_id, number) in critical
            events += _turn(episode, turn, number, threads[trace.agent_id], on_path)
            if on_path:
                about = {"agent": trace.agent_id, "turn": number}
                last = turn.t_model if turn.spawned else turn.t_end  # then it waits for the sub-agents
                name = f"{trace.name or trace.agent_id} turn {number}"
                events.append(_slice(name, "critical", CRITICAL_THREAD, turn.t_start, last, about))
    events.sort(key=lambda event: (event.get("ts", -1), _ORDER[event["ph"]], -event.get("dur", 0)))
    about = {"task": episode.task.key, "index": episode.index, "status": str(episode.status)}
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": about | {"critical_steps": critical_steps(episode)},
    }


def _names(episode: Episode, threads: dict[str, int]) -> Iterator[dict[str, Any]]:
    yield _name("process_name", CRITICAL_THREAD, name=f"{episode.task.key}#{episode.index}")
    labels = {CRITICAL_THREAD: "critical path"}
    labels |= {threads[trace.agent_id]: f"{trace.agent_id} {trace.name}".strip() for trace in episode.traces}
    for thread, label in labels.items():
        yield _name("thread_name", thread, name=label)
        yield _name("thread_sort_index", thread, sort_index=thread)


def _name(kind: str, thread: int, **about: Any) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": PROCESS, "tid": thread, "args": about}


def _turn(episode: Episode, turn: Turn, number: int, thread: int, critical: bool) -> Iterator[dict[str, Any]]:
    about = {"prompt_tokens": turn.start, "sampled_tokens": turn.end - turn.start, "text": turn.content[:_TEXT]}
    about |= {"malformed": turn.malformed} if turn.malformed else {}
    category = "model,critical" if critical else "model"
    yield _slice(f"turn {number}", category, thread, turn.t_start, turn.t_model, about)
    for place, (call, child) in enumerate(zip(turn.calls, episode.launched(turn), strict=True)):
        result = turn.results[place] if place < len(turn.results) else None
        end = _ended(episode, turn, child) if child else turn.t_model + (result.latency_s if result else 0.0)
        about = {"arguments": dumps(call.arguments)[:_TEXT], "result": (result.readable if result else "")[:_TEXT]}
        about |= {"error": str(result.error)} if result and result.error else {}
        about |= {"agent": child} if child else {}
        category = "spawn" if child else "tool,critical" if critical and not turn.spawned else "tool"
        # calls of a turn begin together, so that longer ones enclose shorter ones, as slices of a thread must
        yield _slice(call.name, category, thread, turn.t_model, min(end, turn.t_end), about)


def _ended(episode: Episode, turn: Turn, child: str) -> float:
    turns = episode.trace(child).turns
    return turns[-1].t_end if turns else turn.t_model


def _slice(name: str, category: str, thread: int, begin: float, end: float, about: dict[str, Any]) -> dict[str, Any]:
    start = _micros(begin)
    colour = {"cname": _COLOUR} if "critical" in category else {}
    times = {"ts": start, "dur": max(_micros(end) - start, 0)}
    return {"name": name, "cat": category, "ph": "X", "pid": PROCESS, "tid": thread, **times, "args": about, **colour}


def _arrows(episode: Episode, threads: dict[str, int]) -> Iterator[dict[str, Any]]:
    """From a launching turn to each sub-agent's first turn, and from its last turn to the launcher's next."""
    number = 0
    for parent in episode.traces:
        for place, turn in enumerate(parent.turns):
            for child in (episode.trace(agent_id) for agent_id in turn.spawned):
                if not child.turns:
                    continue
                leave, begin = _micros(turn.t_model), _micros(child.turns[0].t_start)
                yield from _arrow("spawn", number, threads[parent.agent_id], leave, threads[child.agent_id], begin)
                yield from _arrow(
                    "finish", number + 1, threads[child.agent_id], _last(child), *_next(parent, place, threads)
                )
                number += 2


def _last(trace: Trace) -> int:
    """A time inside the last slice of a trace, to which an arrow then belongs."""
    turn = trace.turns[-1]
    return max(_micros(turn.t_model) - 1, _micros(turn.t_start))


def _next(parent: Trace, place: int, threads: dict[str, int]) -> tuple[int, int]:
    """Thread and time to which a turn's sub-agents return."""
    turns = parent.turns
    back = turns[place + 1].t_start if place + 1 < len(turns) else turns[place].t_end
    return threads[parent.agent_id], _micros(back)


def _arrow(name: str, number: int, source: int, leave: int, target: int, arrive: int) -> Iterator[dict[str, Any]]:
    own = {"name": name, "cat": "swarm", "pid": PROCESS, "id": number}
    yield own | {"ph": "s", "tid": source, "ts": leave}
    yield own | {"ph": "f", "bp": "e", "tid": target, "ts": max(arrive, leave)}


def _micros(seconds: float) -> int:
    return round(seconds * 1e6)
