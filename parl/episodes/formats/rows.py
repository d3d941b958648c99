"""Chat rows and answers: OpenAI messages for fine-tuning, files of WideSearch, BrowseComp-Plus and SWE-bench.

A row of messages is one agent, named by ``agent``. Responses hold the final answer for the official scripts;
imported, they become episodes that ``parl rescore`` scores with the gold from
``parl episodes import --tasks``. Sources: the chat format of OpenAI's API; WideSearch 0e664c3;
BrowseComp-Plus 97c637c.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from envs.base import Role
from parl.episodes.formats.common import (
    ExportOptions,
    FormatError,
    episode_of,
    messages,
    ours,
    trace_from_messages,
)
from rollouts.episode import Episode, Trace, TraceStatus, Turn

_DIFF = re.compile(r"```(?:diff|patch)\n(.*?)```", re.DOTALL)
_PATCH = re.compile(r"^(?:diff --git |--- )", re.MULTILINE)


def export_messages(episode: Episode, options: ExportOptions) -> Iterator[dict[str, Any]]:
    """A row per agent; ``arguments`` are JSON text, as chat templates of transformers and TRL expect."""
    for trace in episode.traces:
        yield {
            "messages": messages(episode, trace),
            "agent": trace.agent_id,
            "task": episode.task.key,
            "index": episode.index,
            "status": str(trace.status),
            "reward": episode.rewards.get("total"),
        }


def load_messages(row: dict[str, Any]) -> Iterator[Episode]:
    """An episode of one agent from a row; FormatError if invalid."""
    if not isinstance(row.get("messages"), list):
        raise FormatError("no row of messages: it needs a list `messages`")
    agent = str(row.get("agent", "0"))
    if agent != "0":
        return  # a sub-agent's conversation alone is not an attempt at a task
    trace = trace_from_messages(row["messages"], trainable=True)
    episode = episode_of([trace], None, key=str(row.get("task") or ""), index=int(row.get("index") or 0))
    if isinstance(row.get("reward"), int | float):
        episode.rewards = {"total": float(row["reward"])}
    yield episode


def export_widesearch(episode: Episode, options: ExportOptions) -> dict[str, Any]:
    """A line of a WideSearch response file."""
    return {
        "instance_id": episode.task.key,
        "response": episode.answer,
        "messages": messages(episode, episode.orchestrator),
        "trial_idx": episode.index,
    }


def load_widesearch(row: dict[str, Any]) -> Episode:
    """An attempt from a line of a WideSearch response file; FormatError if invalid."""
    if "instance_id" not in row or "response" not in row:
        raise FormatError("no WideSearch response: it needs instance_id and response")
    trace = _answered(str(row["response"] or ""), row.get("messages") or [])
    return episode_of([trace], None, key=str(row["instance_id"]), index=int(row.get("trial_idx") or 0))


def export_browsecomp_plus(episode: Episode, options: ExportOptions) -> dict[str, Any]:
    """A file of a BrowseComp-Plus run: the answer, and all agents' calls by tool, without document ids."""
    calls = Counter(call.name for trace in episode.traces for turn in trace.turns for call in turn.calls)
    return {
        "query_id": episode.task.key,
        "tool_call_counts": dict(sorted(calls.items())),
        "status": "completed" if not episode.error and episode.answer else "incomplete",
        "retrieved_docids": [],
        "result": [{"type": "output_text", "output": episode.answer}],
        "metadata": {"parl_episode": ours(episode, options)},
    }


def load_browsecomp_plus(row: dict[str, Any]) -> Episode:
    """An attempt from a file of a BrowseComp-Plus run; FormatError if invalid."""
    if "query_id" not in row or "result" not in row:
        raise FormatError("no BrowseComp-Plus run file: it needs query_id and result")
    texts = [part.get("output", "") for part in row["result"] if part.get("type") == "output_text"]
    trace = _answered(str(texts[-1]) if texts else "", [])
    if row.get("status") != "completed":
        trace.status = TraceStatus.FAILED
    return episode_of([trace], (row.get("metadata") or {}).get("parl_episode"), key=str(row["query_id"]))


def export_swe_bench(episode: Episode, options: ExportOptions) -> dict[str, Any]:
    """A line of a SWE-bench predictions file; an answer without a patch makes an empty one, which is scored wrong."""
    fences = _DIFF.findall(episode.answer)
    answer = fences[-1] if fences else episode.answer
    start = _PATCH.search(answer)
    patch = answer[start.start() :].rstrip() + "\n" if start else ""
    return {"instance_id": episode.task.key, "model_name_or_path": "parl", "model_patch": patch}


def _answered(answer: str, conversation: list[dict[str, Any]]) -> Trace:
    trace = trace_from_messages(conversation, trainable=True)
    if not trace.turns:
        trace = Trace(agent_id="0", role=Role.ORCHESTRATOR, name="orchestrator", prompt=trace.prompt, trainable=True)
        trace.turns.append(Turn(start=0, end=0, content=answer))
    trace.message, trace.status = answer, TraceStatus.FINISHED if answer else TraceStatus.FAILED
    return trace
