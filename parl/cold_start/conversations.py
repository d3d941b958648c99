"""Recorded conversations to imitate (``sft.data``): rows of OpenAI messages, or stored episodes.

A row has ``messages``, and may have ``subagents`` (the conversations of its sub-agents: lists of messages, or objects
that hold one) and ``tools`` (OpenAI's declarations; without, those of the environment). A list may be given as JSON
text. Of stored episodes those are taken that were answered and, where they are scored, earned full marks; with
``sft.best`` only the cheapest of each task, which is rejection sampling.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from envs.data.grid import read_parquet
from envs.data.json_rows import json_rows
from envs.data.problems import Problems
from envs.data.text import read_text
from model.chat.base import Call, ChatFormat
from parl.episodes.exchange import whole_episodes
from parl.episodes.formats.common import call_of, messages, text_of
from parl.episodes.listing import Filter
from parl.errors import UserError
from parl.learn.batch import TextRow
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode, EpisodeStatus
from rollouts.store.store import SHARD_NAME

_ROLES = ("system", "developer", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What one agent read and wrote, as OpenAI messages. ``tools`` None: those of the environment."""

    messages: Sequence[dict[str, Any]]
    tools: Sequence[dict[str, Any]] | None = None


def read_conversations(path: Path, best: int | None = None) -> list[list[Conversation]]:
    """Of every demonstration its orchestrator's conversation, then those of its sub-agents.

    ``path``: a .json, .jsonl or .parquet file of rows, or a run, a store or a shard. ``best``: of each task's stored
    episodes so many, with the fewest critical steps, then sampled tokens. UserError, with all mistakes.
    """
    if path.is_dir() or SHARD_NAME.fullmatch(path.name):
        found = list(_of_episodes(path, best))
        cure = "no answered episode with full marks"
    else:
        problems = Problems(f"sft.data = {path}")
        found = list(_of_rows(path, problems))
        try:
            problems.check()
        except ValueError as error:
            raise UserError(str(error)) from None
        cure = "no row"
    if not found:
        raise UserError(f"sft.data = {path}: {cure} to imitate there")
    return found


def conversation_row(
    chat: ChatFormat, told: Conversation, tools: Sequence[dict[str, Any]], observation_weight: float
) -> TextRow:
    """The conversation in the policy's format; what the agent wrote counts 1, the rest ``observation_weight``."""
    tokens: list[int] = []
    weights: list[float] = []

    def add(pieces: Any, weight: float) -> None:
        ids = chat.encode(pieces)
        tokens.extend(ids)
        weights.extend([weight] * len(ids))

    known: dict[str, tuple[str, str]] = {}  # their call's id -> ours, and the tool's name
    for kind, part in _parts(told.messages):
        if kind == "system":
            add(chat.opening([{"role": "system", "content": part}] if part else [], tools), observation_weight)
        elif kind == "user":
            add(chat.user(part), observation_weight)
        elif kind == "results":
            pending = list(known.values())[-len(part) :]
            results = [
                (*known.get(given, pending[place] if place < len(pending) else (given, "")), text)
                for place, (given, text) in enumerate(part)
            ]
            add(chat.results(results), observation_weight)
        else:
            calls = []
            for place, call in enumerate(part.get("tool_calls") or []):
                read = call_of(call, place)
                ours = chat.call_id(read.name, len(known))
                known[str(call.get("id") or ours)] = ours, read.name
                calls.append(Call(id=ours, name=read.name, arguments=read.arguments))
            thought = (part.get("reasoning_content") or "") if chat.thinking else ""
            add(chat.assistant(text_of(part.get("content")), calls, reasoning=thought), 1.0)
    return TextRow(tokens=np.array(tokens, np.int32), weights=np.array(weights, np.float32))


def _parts(given: Sequence[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """``system`` (its text, also where there is none), then ``user``, ``assistant`` and ``results`` in turn."""
    told = [text_of(m.get("content")) for m in given if m["role"] in _ROLES[:2]]
    yield "system", "\n\n".join(told)
    rest = [m for m in given if m["role"] not in _ROLES[:2]]
    at = 0
    while at < len(rest):
        role, end = rest[at]["role"], at + 1
        while role != "assistant" and end < len(rest) and rest[end]["role"] == role:
            end += 1  # what comes together is rendered together
        if role == "user":
            yield "user", "\n\n".join(text_of(m.get("content")) for m in rest[at:end])
        elif role == "tool":
            yield "results", [(str(m.get("tool_call_id") or ""), text_of(m.get("content"))) for m in rest[at:end]]
        else:
            yield "assistant", rest[at]
        at = end


# ---------------------------------------------------------------- sources


def _of_episodes(path: Path, best: int | None) -> Iterator[list[Conversation]]:
    right: dict[str, list[Episode]] = {}
    for _, episode in whole_episodes(path, Filter()):
        if episode.status is EpisodeStatus.ANSWERED and episode.rewards.get("perf", 1.0) >= 1.0:
            right.setdefault(episode.task.key, []).append(episode)
    for episodes in right.values():
        for episode in sorted(episodes, key=_cost)[:best] if best else episodes:
            yield [Conversation(messages=messages(episode, trace)) for trace in episode.traces]


def _cost(episode: Episode) -> tuple[int, int]:
    return critical_steps(episode), sum(sum(trace.mask) for trace in episode.traces)


def _of_rows(path: Path, problems: Problems) -> Iterator[list[Conversation]]:
    if path.suffix == ".parquet":
        rows = read_parquet(path, problems) or []
    else:
        text = read_text(path, problems)
        rows = json_rows(text, problems) if text is not None else []
    for where, row in rows:
        if found := _row(where, row, problems):
            yield found


def _row(where: str, row: Any, problems: Problems) -> list[Conversation] | None:
    if not isinstance(row, dict) or "messages" not in row:
        problems.add(where, "no field `messages`; give each row its conversation as a list of OpenAI messages")
        return None
    tools = _list(row.get("tools"))
    agents = [row["messages"], *(_list(row.get("subagents")) or [])]
    found = []
    for number, agent in enumerate(agents):
        name = f"subagents[{number - 1}]" if number else "messages"
        told = _list(agent.get("messages") if isinstance(agent, dict) else agent)
        own = _list(agent.get("tools")) if isinstance(agent, dict) else None
        if (fault := _fault(told)) is not None:
            problems.add(where, f"{name}: {fault}")
            return None
        found.append(Conversation(messages=told or [], tools=own or (tools if not number else None)))
    return found


def _list(value: Any) -> list[Any] | None:
    """A list, or the JSON text of one; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def _fault(told: list[Any] | None) -> str | None:
    """What makes a conversation none that can be imitated."""
    if not told:
        return "no list of messages"
    for number, message in enumerate(told):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            return f"message {number} has none of the roles {', '.join(_ROLES)}"
    turns = [message["role"] for message in told if message["role"] not in _ROLES[:2]]
    if turns[:1] != ["user"]:
        return "it does not begin with a question: a message of the role user"
    if "assistant" not in turns:
        return "it holds nothing to imitate: no message of the role assistant"
    if any(a == b == "assistant" for a, b in pairwise(turns)):
        return "two messages of the role assistant follow each other"
    return None
