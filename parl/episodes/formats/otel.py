"""OpenTelemetry spans (GenAI conventions): OTLP's JSON, one line per episode.

``invoke_agent`` for every agent, in it ``chat`` for every turn and ``execute_tool`` for every call; a
sub-agent's span is inside that of its launching call. The conventions are still marked "development"; this
follows semantic-conventions-genai of 2026-08. A store has seconds since an episode's start, so spans begin at
the epoch. Export only.
"""

from __future__ import annotations

import hashlib
from typing import Any

from parl.episodes.formats.common import ExportOptions, assistant, dumps, opening
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode, Trace, Turn

SYSTEM = "parl"
_INTERNAL, _CLIENT = 1, 3  # OTLP's kinds of span
_OK, _ERROR = 1, 2


def export(episode: Episode, options: ExportOptions) -> dict[str, Any]:
    """The episode as one OTLP request: resource, scope, spans."""
    spans: list[dict[str, Any]] = []
    _agent(episode, episode.orchestrator, "", spans)
    spans[0]["attributes"] += _attributes(
        {
            "parl.task": episode.task.key,
            "parl.status": str(episode.status),
            "parl.critical_steps": critical_steps(episode),
        }
    )
    resource = {"attributes": _attributes({"service.name": SYSTEM})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": SYSTEM}, "spans": spans}]}]}


def _agent(episode: Episode, trace: Trace, parent: str, spans: list[dict[str, Any]]) -> None:
    end = trace.turns[-1].t_end if trace.turns else 0.0
    begin = trace.turns[0].t_start if trace.turns else 0.0
    about = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": SYSTEM,
        "gen_ai.agent.id": trace.agent_id,
        "gen_ai.agent.name": trace.name or str(trace.role),
        "gen_ai.usage.output_tokens": sum(turn.end - turn.start for turn in trace.turns),
        "gen_ai.input.messages": dumps(opening(episode, trace)),
    }
    failed = "" if trace.message else str(trace.status)
    own = _span(episode, trace.agent_id, f"invoke_agent {trace.name}", parent, (begin, end), about, _INTERNAL, failed)
    spans.append(own)
    for number, turn in enumerate(trace.turns):
        _turn(episode, trace, turn, number, own["spanId"], spans)


def _turn(episode: Episode, trace: Trace, turn: Turn, number: int, parent: str, spans: list[dict[str, Any]]) -> None:
    name = f"{trace.agent_id}/turn{number}"
    chat = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": SYSTEM,
        "gen_ai.usage.input_tokens": turn.start,
        "gen_ai.usage.output_tokens": turn.end - turn.start,
        "gen_ai.output.messages": dumps([assistant(turn)]),
        "gen_ai.response.finish_reasons": "tool_call" if turn.calls else "stop",
    }
    times = (turn.t_start, turn.t_model)
    spans.append(_span(episode, name, "chat", parent, times, chat, _CLIENT, turn.malformed))
    launched = episode.launched(turn)
    for place, call in enumerate(turn.calls):
        result = turn.results[place] if place < len(turn.results) else None
        about = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": call.name,
            "gen_ai.tool.call.id": call.id,
            "gen_ai.tool.call.arguments": dumps(call.arguments),
            **({"gen_ai.tool.call.result": result.readable} if result else {}),
        }
        took = min(result.latency_s, max(turn.t_end - turn.t_model, 0.0)) if result else 0.0
        times = (turn.t_model, turn.t_model + took)
        error = str(result.error or "") if result else "cancelled"
        span = _span(
            episode, f"{name}/call{place}", f"execute_tool {call.name}", parent, times, about, _INTERNAL, error
        )
        spans.append(span)
        child = launched[place]
        if child is not None:
            _agent(episode, episode.trace(child), span["spanId"], spans)
    for child in turn.spawned:
        if child not in launched:  # by a call of another harness's form
            _agent(episode, episode.trace(child), parent, spans)


def _span(
    episode: Episode,
    identity: str,
    name: str,
    parent: str,
    times: tuple[float, float],
    about: dict[str, Any],
    kind: int,
    error: str,
) -> dict[str, Any]:
    where = f"{episode.task.key}#{episode.index}#{episode.seed}"
    if error:
        about = about | {"error.type": error}
    return {
        "traceId": _hex(where, 32),
        "spanId": _hex(f"{where}/{identity}", 16),
        **({"parentSpanId": parent} if parent else {}),
        "name": name.strip(),
        "kind": kind,
        "startTimeUnixNano": str(int(times[0] * 1e9)),
        "endTimeUnixNano": str(int(max(times) * 1e9)),
        "attributes": _attributes(about),
        "status": {"code": _ERROR if error else _OK},
    }


def _hex(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def _attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = {int: ("intValue", str), str: ("stringValue", str)}
    return [
        {"key": key, "value": {kinds[type(value)][0]: kinds[type(value)][1](value)}} for key, value in values.items()
    ]
