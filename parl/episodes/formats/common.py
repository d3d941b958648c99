"""Shared by all formats: an agent's messages, and our own fields beside a format's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from envs.base import ErrorKind, Gold, Role, Task, ToolCall, ToolResult, task_key
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.prompts import CREATE_SUBAGENT, PROMPT_METRIC, PromptsConfig

_EPISODE = ("index", "seed", "answer", "limit", "error", "critical_budget", "wall_s", "rewards")
_TRACE = ("agent_id", "name", "parent", "parent_turn", "prompt", "message", "trainable")
TIMES = ("t_start", "t_model", "t_end")


class FormatError(ValueError):
    """A file that does not have its format; the text says where and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """``keep_gold``: export gold answers and plans. ``tokens``: export token ids and log-probs if possible."""

    keep_gold: bool = False
    tokens: bool = True


# ---------------------------------------------------------------- our own fields


def ours(episode: Episode, options: ExportOptions) -> dict[str, Any]:
    """Fields that no format has, as JSON: the task (gold and plan only on request), how it ended."""
    task = episode.task.to_row()
    if not options.keep_gold:
        task |= {"gold": json.dumps(asdict(Gold(kind=episode.task.gold.kind))), "plan": "{}"}
    return {"task": task, "status": str(episode.status), **{name: getattr(episode, name) for name in _EPISODE}}


def trace_fields(trace: Trace) -> dict[str, Any]:
    """A trace's own fields as JSON, without turns and tokens."""
    own = {name: getattr(trace, name) for name in _TRACE}
    return {**own, "role": str(trace.role), "status": str(trace.status)}


def trace_of(data: dict[str, Any]) -> Trace:
    """Inverse of :func:`trace_fields`."""
    own = {name: data[name] for name in _TRACE}
    return Trace(**own, role=Role(data["role"]), status=TraceStatus(data["status"]))


def episode_of(traces: list[Trace], data: dict[str, Any] | None, *, key: str = "", index: int = 0) -> Episode:
    """An episode of ``traces`` with the fields from :func:`ours`; for other files, with what is known."""
    root = traces[0]
    if data:
        root.prompt = root.prompt or data["task"]["prompt"]
        root.prompt = root.prompt or data["task"]["prompt"]
        own = {name: data[name] for name in _EPISODE}
        status = EpisodeStatus(data["status"])
        return Episode(**own, task=Task.from_row(data["task"]), status=status, traces=traces)
    gold = Gold(kind="exact")
    task = Task(
        key=key or task_key(root.prompt, asdict(gold)), family="imported", split="test", prompt=root.prompt, gold=gold
    )
    answered = root.status is TraceStatus.FINISHED
    status = EpisodeStatus.ANSWERED if answered else EpisodeStatus.FAILED
    return Episode(task=task, index=index, seed=0, traces=traces, status=status, answer=root.message)


def end_of(trace: Trace) -> None:
    """Set how an imported agent ended: with a message if its last turn has no calls, else failed."""
    last = trace.turns[-1] if trace.turns else None
    if last is not None and not last.calls:
        trace.status, trace.message = TraceStatus.FINISHED, last.content
    else:
        trace.status = TraceStatus.FAILED


# ---------------------------------------------------------------- messages


def system_prompt(episode: Episode, trace: Trace) -> str:
    """The agent's system prompt, from the orchestrator's or its registration; "" if unknown."""
    if trace.parent is None:
        return episode.metrics.get(PROMPT_METRIC, PromptsConfig().orchestrator)
    told = ""
    for turn in episode.trace(trace.parent).turns[: (trace.parent_turn or 0) + 1]:
        for call in turn.calls:
            if call.name == CREATE_SUBAGENT and call.arguments.get("name") == trace.name:
                told = str(call.arguments.get("system_prompt", ""))
    return told


def assistant(turn: Turn) -> dict[str, Any]:
    """A turn as OpenAI's assistant message; arguments as JSON text."""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": dumps(call.arguments)}}
        for call in turn.calls
    ]
    return {"role": "assistant", "content": turn.content} | ({"tool_calls": calls} if calls else {})


def tool_messages(turn: Turn) -> list[dict[str, Any]]:
    """The results of a turn as OpenAI's tool messages."""
    return [
        {"role": "tool", "tool_call_id": call.id, "name": call.name, "content": result.readable}
        for call, result in zip(turn.calls, turn.results, strict=False)
    ]


def opening(episode: Episode, trace: Trace) -> list[dict[str, Any]]:
    """The first messages of an agent."""
    told = system_prompt(episode, trace)
    return [*([{"role": "system", "content": told}] if told else []), {"role": "user", "content": trace.prompt}]


def messages(episode: Episode, trace: Trace) -> list[dict[str, Any]]:
    """One agent's whole conversation in OpenAI's form."""
    out = opening(episode, trace)
    for turn in trace.turns:
        out += [assistant(turn), *tool_messages(turn)]
    return out


def trace_from_messages(given: Iterable[dict[str, Any]], **named: Any) -> Trace:
    """An agent from a conversation in OpenAI's form, a turn per assistant message. Raises FormatError."""
    trace = Trace(**({"agent_id": "0", "role": Role.ORCHESTRATOR, "name": "orchestrator"} | named))
    for number, message in enumerate(given):
        if not isinstance(message, dict) or "role" not in message:
            raise FormatError(f"message {number} is no object with a role: {message!r:.80}")
        role, content = message["role"], text_of(message.get("content"))
        if role == "user" and not trace.turns:
            trace.prompt = f"{trace.prompt}\n\n{content}" if trace.prompt else content
        elif role == "assistant":
            calls = [call_of(call, place) for place, call in enumerate(message.get("tool_calls") or [])]
            trace.turns.append(Turn(start=0, end=0, content=content, calls=calls))
        elif role == "tool" and trace.turns:
            trace.turns[-1].results.append(result_of(content))
    end_of(trace)
    return trace


def call_of(data: dict[str, Any], place: int) -> ToolCall:
    """A call in OpenAI's form, nested or flat; arguments may be text or an object."""
    inner = data.get("function") or data
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            arguments = {"text": arguments}
    if not isinstance(arguments, dict):
        arguments = {} if arguments is None else {"value": arguments}
    name = str(inner.get("name", ""))
    return ToolCall(id=str(data.get("id") or f"functions.{name}:{place}"), name=name, arguments=arguments)


def result_of(text: str, error: str | None = None, latency_s: float = 0.0) -> ToolResult:
    """A tool's result; an unknown kind of error becomes ``server``."""
    kinds = {str(kind) for kind in ErrorKind}
    kind = None if error is None else ErrorKind(error) if error in kinds else ErrorKind.SERVER
    return ToolResult(text=text, error=kind, latency_s=latency_s)


def text_of(content: Any) -> str:
    """The text of a message's content, which may be a list of parts."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text", f"[{part.get('type')}]")) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)


def dumps(value: Any) -> str:
    """Compact JSON; a lone surrogate stays an escape."""
    return json.dumps(value, separators=(",", ":"))
