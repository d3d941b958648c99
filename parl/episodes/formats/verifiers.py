"""verifiers' records: Episodes of 0.4 (``traces.jsonl``), and rows of ``results.jsonl`` up to 0.3.

Our episode is an episode of theirs with one trace, whose message graph holds every agent: a root for each,
edges ``subagent_call`` from the turn that spawned, ``subagent_return`` to the turn that reads the message,
``subagent_cancel`` for a cancelled agent. Tokens of untrained agents are not marked trainable. Import: one
episode per trace of theirs; a root without ``subagent_call`` starts its conversation, and the last of several
continuations counts. Source: verifiers 0.4.0 (``verifiers.v1.episode``, ``trace``, ``graph``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from envs.base import Role
from parl.episodes.formats.common import (
    TIMES,
    ExportOptions,
    FormatError,
    dumps,
    end_of,
    episode_of,
    messages,
    opening,
    ours,
    result_of,
    text_of,
    tool_messages,
    trace_fields,
    trace_from_messages,
    trace_of,
)
from parl.episodes.formats.common import call_of as _call_of
from parl.episodes.formats.tokens import Piece, join, pieces, timed
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode, Trace, TraceStatus, Turn

Node = dict[str, Any]


def export(episode: Episode, options: ExportOptions) -> dict[str, Any]:
    """The episode as one record of verifiers 0.4."""
    task = {
        "type": "parl",
        "data": {"idx": episode.index, "prompt": episode.task.prompt, "name": episode.task.family},
        "key": episode.task.key,
    }
    nodes: list[Node] = []
    calls: list[dict[str, Any]] = []
    last: dict[tuple[str, int], int] = {}  # (agent, turn) -> its node
    for trace in episode.traces:
        _append(episode, trace, nodes, calls, last, options)
    rewards = episode.rewards
    trace = {
        "id": f"{episode.task.key}-{episode.index}",
        "version": 1,
        "verifiers": {"version": "0.4.0"},
        "task": task,
        "agent": {"config": {}, "name": "orchestrator", "trainable": True},
        "nodes": nodes,
        "calls": calls,
        "rewards": {"total": {"score": rewards["total"], "weight": 1.0}} if "total" in rewards else {},
        "metrics": {name: float(value) for name, value in rewards.items() if name != "total"},
        "info": {"parl_episode": ours(episode, options), "parl_traces": [trace_fields(t) for t in episode.traces]},
        "root_reply": episode.answer,
    }
    errors = [{"type": "EpisodeFailed", "message": episode.error}] if episode.error else []
    record = {"id": trace["id"], "env": {"id": "parl"}, "task": task, "group": {"id": episode.task.key}}
    return record | {"ok": not episode.error, "errors": errors, "traces": [trace]}


def _append(
    episode: Episode,
    trace: Trace,
    nodes: list[Node],
    calls: list[dict[str, Any]],
    last: dict[tuple[str, int], int],
    options: ExportOptions,
) -> None:
    parts, tail = pieces(trace)
    parent: int | None = None

    def add(message: dict[str, Any], **more: Any) -> int:
        nonlocal parent
        nodes.append({"message": message, "timestamp": 0.0, **({} if parent is None else {"parent": parent}), **more})
        parent = len(nodes) - 1
        return parent

    def read(at: int, tokens: list[int]) -> None:
        if options.tokens and tokens:
            nodes[at] |= {"token_ids": tokens, "mask": [False] * len(tokens)}

    first = len(nodes)
    for message in opening(episode, trace):
        at = add(message)
    if trace.parent is not None:
        spawner = last[trace.parent, trace.parent_turn or 0]
        nodes[first]["semantic_parents"] = [{"node": spawner, "type": "subagent_call"}]
    for number, (turn, piece) in enumerate(zip(trace.turns, parts, strict=True)):
        read(parent if parent is not None else at, piece.read)
        at = add(_assistant(turn), sampled=True)
        last[trace.agent_id, number] = at
        if options.tokens:
            trained = [trace.trainable] * len(piece.sampled)
            nodes[at] |= {"token_ids": piece.sampled, "mask": trained}
            nodes[at] |= {"logprobs": piece.logprobs} if trace.trainable else {}
        usage = {"prompt_tokens": turn.start, "completion_tokens": turn.end - turn.start}
        calls.append({"node": at, "usage": usage, "time": {"start": turn.t_start, "end": turn.t_model}})
        for message in tool_messages(turn):
            add(message)
    read(parent if parent is not None else at, tail)
    if trace.parent is not None and trace.turns:
        _returned(episode, trace, nodes, last)


def _returned(episode: Episode, trace: Trace, nodes: list[Node], last: dict[tuple[str, int], int]) -> None:
    """Add the edge at an agent's end."""
    assert trace.parent is not None
    end = last[trace.agent_id, len(trace.turns) - 1]
    spawned = trace.parent_turn or 0
    if trace.status is TraceStatus.CANCELLED:
        nodes[end].setdefault("semantic_parents", []).append(
            {"node": last[trace.parent, spawned], "type": "subagent_cancel"}
        )
    elif (trace.parent, spawned + 1) in last:
        reader = nodes[last[trace.parent, spawned + 1]]
        reader.setdefault("semantic_parents", []).append({"node": end, "type": "subagent_return"})


def _assistant(turn: Turn) -> dict[str, Any]:
    calls = [{"id": call.id, "name": call.name, "arguments": dumps(call.arguments)} for call in turn.calls]
    return {"role": "assistant", "content": turn.content, **({"tool_calls": calls} if calls else {})}


# ---------------------------------------------------------------- in


def load(record: dict[str, Any]) -> Iterator[Episode]:
    """An episode per trace of a record; FormatError if invalid."""
    if "traces" not in record:
        raise FormatError("no verifiers record: it has no traces")
    for number, trace in enumerate(record["traces"]):
        nodes, info = trace.get("nodes") or [], trace.get("info") or {}
        paths = _paths(nodes)
        if not paths:
            continue
        ends = {id(path): [n for n in path if nodes[n]["message"]["role"] == "assistant"] for path in paths}
        paths = [path for path in paths if ends[id(path)] or "parl_traces" in info]
        traces = _agents(nodes, paths, info.get("parl_traces"), trace.get("calls") or [])
        task = record.get("task") or {}
        episode = episode_of(traces, info.get("parl_episode"), key=str(task.get("key") or ""), index=number)
        scores = [
            reward["score"] * reward.get("weight", 1.0) for reward in (trace.get("rewards") or {}).values() if reward
        ]
        if scores and not episode.rewards:
            episode.rewards = {"total": sum(scores)}
        yield episode


def _paths(nodes: list[Node]) -> list[list[int]]:
    """For every root its longest-lived continuation: the path to the last leaf."""
    parents = [node.get("parent") for node in nodes]
    inner, roots, leaves = set(parents), [], {}
    for at, above in enumerate(parents):
        if above is not None and (type(above) is not int or not 0 <= above < at):
            raise FormatError(f"node {at}: parent {above!r:.40} is no earlier node")
        roots.append(at if above is None else roots[above])
        if at not in inner:
            leaves[roots[at]] = at  # later leaves replace earlier ones
    return [_down_to(leaves[root], parents) for root in sorted(leaves)]


def _down_to(leaf: int, parents: list[int | None]) -> list[int]:
    """The nodes from the root down to ``leaf``."""
    path, above = [leaf], parents[leaf]
    while above is not None:
        path.append(above)
        above = parents[above]
    return path[::-1]


def _agents(
    nodes: list[Node], paths: list[list[int]], known: list[dict[str, Any]] | None, calls: list[dict[str, Any]]
) -> list[Trace]:
    owner: dict[int, tuple[Trace, int]] = {}  # assistant node -> its agent and turn
    times = {call.get("node"): call.get("time") or {} for call in calls}
    traces: list[Trace] = []
    for number, path in enumerate(paths):
        links = {link["type"]: link["node"] for link in nodes[path[0]].get("semantic_parents") or []}
        spawner = owner.get(links.get("subagent_call", -1))
        if known is not None:
            trace = trace_of(known[number])
        elif spawner is None:
            if traces:
                continue  # a second root without an edge: a rewritten history
            trace = Trace(agent_id="0", role=Role.ORCHESTRATOR, name="orchestrator", trainable=True)
        else:
            above, turn = spawner
            place = sum(len(t.spawned) for t in above.turns)
            trace = Trace(agent_id=f"{above.agent_id}/{place}", role=Role.SUBAGENT, name="subagent")
            trace.parent, trace.parent_turn = above.agent_id, turn
        if spawner is not None:
            spawner[0].turns[spawner[1]].spawned.append(trace.agent_id)
        parts, tail = _follow(nodes, path, trace, owner, times, read_prompt=known is None)
        if parts and all(piece.sampled for piece in parts):
            join(trace, parts, tail)
        if known is None:
            end_of(trace)
        traces.append(trace)
    return traces


def _follow(
    nodes: list[Node],
    path: list[int],
    trace: Trace,
    owner: dict[int, tuple[Trace, int]],
    times: dict[Any, dict[str, float]],
    *,
    read_prompt: bool,
) -> tuple[list[Piece], list[int]]:
    parts: list[Piece] = []
    read: list[int] = []
    for at in path:
        node = nodes[at]
        message, tokens = node["message"], node.get("token_ids") or []
        role, content = message["role"], text_of(message.get("content"))
        if role != "assistant":
            read += tokens
            if role == "tool" and trace.turns:
                trace.turns[-1].results.append(result_of(content))
            elif role == "user" and read_prompt and not trace.turns:
                trace.prompt += ("\n\n" if trace.prompt else "") + content
            continue
        calls = [_call_of(call, place) for place, call in enumerate(message.get("tool_calls") or [])]
        turn = Turn(start=0, end=0, content=content, calls=calls)
        span = times.get(at, {})
        turn.t_start, turn.t_model = span.get("start", 0.0), span.get("end", 0.0)
        turn.t_end = turn.t_model
        trace.turns.append(turn)
        owner[at] = (trace, len(trace.turns) - 1)
        scaffold = _scaffold(node, tokens)
        parts.append(
            Piece(read=read + tokens[:scaffold], sampled=tokens[scaffold:], logprobs=node.get("logprobs") or [])
        )
        read = []
    return parts, read


def _scaffold(node: Node, tokens: list[int]) -> int:
    """Tokens of the generation prompt before the sampled ones; 0 for untrained agents."""
    mask = node.get("mask") or []
    return mask.index(True) if True in mask and len(mask) == len(tokens) else 0


# ---------------------------------------------------------------- results.jsonl


def export_result(episode: Episode, options: ExportOptions) -> dict[str, Any]:
    """The orchestrator's conversation as a row of ``results.jsonl``, with sub-agents' messages to it."""
    root = episode.orchestrator
    begin = len(opening(episode, root))
    whole = messages(episode, root)
    rewards = episode.rewards
    tokens = {
        "input_tokens": float(sum(turn.start for turn in root.turns)),
        "output_tokens": float(sum(turn.end - turn.start for turn in root.turns)),
    }
    return {
        "example_id": episode.task.key,
        "prompt": whole[:begin],
        "completion": whole[begin:],
        "answer": "; ".join(episode.task.gold.answers) if options.keep_gold else "",
        "info": {"parl_episode": ours(episode, options), "critical_steps": critical_steps(episode)},
        "reward": rewards.get("total"),
        "metrics": rewards,
        **rewards,
        "timing": {"total_ms": 1000.0 * episode.wall_s, "turns": [timed(turn) for turn in root.turns]},
        "is_completed": not episode.error,
        "is_truncated": bool(episode.limit),
        "stop_condition": episode.limit or str(episode.status),
        "token_usage": tokens,
        "tool_defs": [],
        "error": episode.error or None,
    }


def load_result(row: dict[str, Any]) -> Episode:
    """An episode of one agent from a row of ``results.jsonl``; FormatError if invalid."""
    if "completion" not in row or "prompt" not in row:
        raise FormatError("no row of results.jsonl: it needs prompt and completion")
    prompt, completion = (
        [{"role": role, "content": row[name]}] if isinstance(row[name], str) else row[name]
        for name, role in (("prompt", "user"), ("completion", "assistant"))
    )
    trace = trace_from_messages([*prompt, *completion], trainable=True)
    for turn, times in zip(trace.turns, (row.get("timing") or {}).get("turns") or [], strict=False):
        for name in TIMES:
            setattr(turn, name, times[name])
    data = (row.get("info") or {}).get("parl_episode") if isinstance(row.get("info"), dict) else None
    episode = episode_of([trace], data, key=str(row.get("example_id", "")))
    if not episode.rewards and isinstance(row.get("reward"), int | float):
        episode.rewards = {"total": float(row["reward"])}
    return episode
