"""ATIF v1.8, Harbor's Agent Trajectory Interchange Format: one document per episode, sub-agents embedded.

The format has messages, calls, observations, token ids, log-probs and references to sub-agents; times,
budgets and the like go into its ``extra`` objects. Instead of ``metrics.prompt_token_ids``, which would
repeat the whole conversation, only new ids are written, as ``metrics.extra.new_prompt_token_ids``. Reads
versions 1.0 to 1.8 of any writer. Source: harbor 0.24.0 (``harbor.models.trajectories``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from envs.base import Role
from parl.episodes.formats.common import (
    TIMES,
    ExportOptions,
    FormatError,
    call_of,
    end_of,
    episode_of,
    ours,
    result_of,
    system_prompt,
    text_of,
    trace_fields,
    trace_of,
)
from parl.episodes.formats.documents import object_in
from parl.episodes.formats.tokens import Piece, join, pieces, timed
from rollouts.episode import Episode, Trace, Turn

VERSION = "ATIF-v1.8"
_AGENTS = 2_000
_DEPTH = 8  # nested sub-agents, at most


def export(episode: Episode, options: ExportOptions) -> dict[str, Any]:
    """The episode as one ATIF document."""
    document = _trajectory(episode, episode.orchestrator, options)
    document["session_id"] = f"{episode.task.key}#{episode.index}"
    document["extra"]["parl_episode"] = ours(episode, options)
    return document


def _trajectory(episode: Episode, trace: Trace, options: ExportOptions) -> dict[str, Any]:
    told = system_prompt(episode, trace)
    steps: list[dict[str, Any]] = [{"source": "system", "message": told}] if told else []
    steps.append({"source": "user", "message": trace.prompt})
    parts, tail = pieces(trace)
    for number, (turn, piece) in enumerate(zip(trace.turns, parts, strict=True)):
        steps.append(_step(episode, turn, piece, number, options))
    extra: dict[str, Any] = {"parl_trace": trace_fields(trace)}
    if options.tokens and tail:
        extra["trailing_token_ids"] = tail
    children = [child for child in episode.subagents if child.parent == trace.agent_id]
    sampled = sum(len(piece.sampled) for piece in parts)
    return {
        "schema_version": VERSION,
        "trajectory_id": trace.agent_id,
        "agent": {"name": trace.name or str(trace.role), "version": "parl", "extra": {"role": str(trace.role)}},
        "steps": [{"step_id": place, **step} for place, step in enumerate(steps, 1)],
        "final_metrics": {"total_completion_tokens": sampled, "total_steps": len(steps)},
        "extra": extra,
        **({"subagent_trajectories": [_trajectory(episode, c, options) for c in children]} if children else {}),
    }


def _step(episode: Episode, turn: Turn, piece: Piece, number: int, options: ExportOptions) -> dict[str, Any]:
    metrics: dict[str, Any] = {"prompt_tokens": turn.start, "completion_tokens": turn.end - turn.start}
    if options.tokens:
        versions = sorted(set(piece.versions))
        metrics |= {"completion_token_ids": piece.sampled, "logprobs": piece.logprobs}
        metrics["extra"] = {
            "new_prompt_token_ids": piece.read,
            "policy_versions": versions if len(versions) == 1 else piece.versions,
        }
    extra = {**timed(turn), "turn": number, **({"malformed": turn.malformed} if turn.malformed else {})}
    step: dict[str, Any] = {
        "source": "agent",
        "message": turn.content,
        "llm_call_count": 1,
        "metrics": metrics,
        "extra": extra,
    }
    if turn.calls:
        step["tool_calls"] = [
            {"tool_call_id": call.id, "function_name": call.name, "arguments": call.arguments} for call in turn.calls
        ]
    launched = episode.launched(turn)
    results: list[dict[str, Any]] = []
    for place, call in enumerate(turn.calls):
        result = turn.results[place] if place < len(turn.results) else None
        if result is None and launched[place] is None:
            continue
        item: dict[str, Any] = {"source_call_id": call.id}
        if result is not None:
            item["content"] = result.readable
            item["extra"] = {"latency_s": result.latency_s, **({"error": str(result.error)} if result.error else {})}
        if launched[place] is not None:
            item["subagent_trajectory_ref"] = [{"trajectory_id": launched[place]}]
        results.append(item)
    if others := [child for child in turn.spawned if child not in launched]:  # of another harness's form
        results.append({"subagent_trajectory_ref": [{"trajectory_id": child} for child in others]})
    if results:
        step["observation"] = {"results": results}
    return step


# ---------------------------------------------------------------- in


def load(document: dict[str, Any], folder: Path | None = None) -> Episode:
    """An episode from one document; ``folder``: for files that it refers to. FormatError if invalid."""
    traces: list[Trace] = []
    _read(document, traces, parent=None, parent_turn=None, known={}, folder=folder)
    traces.sort(key=lambda trace: [int(part) for part in trace.agent_id.split("/")])
    data = (document.get("extra") or {}).get("parl_episode")
    return episode_of(traces, data, key=str(document.get("session_id") or ""))


def _read(
    document: dict[str, Any],
    traces: list[Trace],
    *,
    parent: Trace | None,
    parent_turn: int | None,
    known: dict[str, dict[str, Any]],
    folder: Path | None,
) -> Trace:
    if not str(document.get("schema_version", "")).startswith("ATIF-v1.") or "steps" not in document:
        raise FormatError(f"no ATIF document: schema_version {document.get('schema_version')!r}, needs steps")
    if len(traces) >= _AGENTS:
        raise FormatError(f"more than {_AGENTS:,} agents: does a trajectory refer to itself?")
    if parent is not None and parent.agent_id.count("/") >= _DEPTH:
        raise FormatError(f"sub-agents more than {_DEPTH} deep: does a trajectory refer to itself?")
    known = known | {child["trajectory_id"]: child for child in document.get("subagent_trajectories") or []}
    extra = document.get("extra") or {}
    trace = _begin(document, extra, parent, parent_turn)
    if parent is not None:
        parent.turns[-1].spawned.append(trace.agent_id)
    traces.append(trace)
    parts: list[Piece] = []
    for step in document["steps"]:
        if step["source"] == "user" and not trace.turns and "parl_trace" not in extra:
            trace.prompt += ("\n\n" if trace.prompt else "") + text_of(step["message"])
        elif step["source"] == "agent" and step.get("llm_call_count") != 0 and not step.get("is_copied_context"):
            _turn(step, trace, parts)
            for reference in _references(step):
                child = _resolve(reference, known, folder)
                _read(child, traces, parent=trace, parent_turn=len(trace.turns) - 1, known=known, folder=folder)
    if all(part.sampled for part in parts):  # otherwise some token ids are missing
        join(trace, parts, extra.get("trailing_token_ids") or [])
    if "parl_trace" not in extra:
        end_of(trace)
    return trace


def _begin(document: dict[str, Any], extra: dict[str, Any], parent: Trace | None, parent_turn: int | None) -> Trace:
    if "parl_trace" in extra:
        return trace_of(extra["parl_trace"])
    place = 0 if parent is None else sum(len(turn.spawned) for turn in parent.turns)
    return Trace(
        agent_id="0" if parent is None else f"{parent.agent_id}/{place}",
        role=Role.ORCHESTRATOR if parent is None else Role.SUBAGENT,
        name=document["agent"]["name"],
        parent=parent.agent_id if parent else None,
        parent_turn=parent_turn,
    )


def _turn(step: dict[str, Any], trace: Trace, parts: list[Piece]) -> None:
    calls = [
        call_of({"id": call["tool_call_id"], "name": call["function_name"], "arguments": call["arguments"]}, place)
        for place, call in enumerate(step.get("tool_calls") or [])
    ]
    extra = step.get("extra") or {}
    turn = Turn(start=0, end=0, content=text_of(step["message"]), calls=calls, malformed=extra.get("malformed", ""))
    for name in TIMES:
        setattr(turn, name, float(extra.get(name, 0.0)))
    found = {item.get("source_call_id"): item for item in _results(step) if "content" in item}
    for call in calls:
        if call.id in found:
            item = found[call.id]
            more = item.get("extra") or {}
            turn.results.append(result_of(text_of(item["content"]), more.get("error"), more.get("latency_s", 0.0)))
    trace.turns.append(turn)
    parts.append(_piece(step.get("metrics") or {}, parts))


def _piece(metrics: dict[str, Any], before: list[Piece]) -> Piece:
    sampled = metrics.get("completion_token_ids") or []
    extra = metrics.get("extra") or {}
    read = extra.get("new_prompt_token_ids")
    if read is None:
        seen = [token for piece in before for token in piece.read + piece.sampled]
        prompt = metrics.get("prompt_token_ids") or []
        if prompt[: len(seen)] != seen:
            return Piece()  # the history was rewritten: no stream can be reconstructed
        read = prompt[len(seen) :]
    versions = extra.get("policy_versions") or []
    if len(versions) == 1:
        versions = versions * len(sampled)
    return Piece(read=read, sampled=sampled, logprobs=metrics.get("logprobs") or [], versions=versions)


def _results(step: dict[str, Any]) -> list[dict[str, Any]]:
    return (step.get("observation") or {}).get("results") or []


def _references(step: dict[str, Any]) -> list[dict[str, Any]]:
    return [reference for item in _results(step) for reference in item.get("subagent_trajectory_ref") or []]


def _resolve(reference: dict[str, Any], known: dict[str, dict[str, Any]], folder: Path | None) -> dict[str, Any]:
    if reference.get("trajectory_id") in known:
        return known[reference["trajectory_id"]]
    path = reference.get("trajectory_path")
    if path is not None:
        return _elsewhere(path, folder)
    raise FormatError(f"a sub-agent's trajectory is not there: {reference}; without it critical steps would be wrong")


def _elsewhere(path: Any, folder: Path | None) -> dict[str, Any]:
    """The document in the file ``path``, which must be below ``folder``."""
    if not isinstance(path, str) or "://" in path or "\\" in path or "\0" in path or Path(path).is_absolute():
        raise FormatError(f"trajectory_path {path!r:.200}: give a file's path below the folder of the document")
    try:
        if folder is None or ".." in Path(path).parts or not (folder / path).is_file():
            raise FormatError(f"trajectory_path {path!r:.200}: no such file below the folder of the document")
        return object_in(folder / path, folder)
    except OSError as fault:
        raise FormatError(f"trajectory_path {path!r:.200}: {fault.strerror}") from None
    except ValueError as fault:
        raise FormatError(f"trajectory_path {path!r:.200}: {fault}") from None
