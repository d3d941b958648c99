"""Context management: what an agent continues with when its context is too long.

The baselines that the Kimi K2.5 report compares swarms with (section on context sharding): ``discard_all``
drops the history and restarts from the question (used with DeepSeek-V3.2), ``hide_tool_result`` keeps the
agent's own text and the newest round of tool results, with a placeholder for older ones.

A new context is a new segment of the same trace (``Trace.cuts``): the agent reads it as a prompt, under fresh
noise, and each segment is trained as a row of its own, so that rows equal the engine's contexts.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.base import ToolResult
from model.chat.base import ChatFormat
from rollouts.config import ContextConfig
from rollouts.episode import Trace

HIDDEN = "hidden"


def context_limit(config: ContextConfig, trace: Trace) -> int | None:
    """Longest context of ``trace`` before a turn, in tokens; None if only the engine's limit applies."""
    return config.orchestrator_tokens if trace.parent is None else config.subagent_tokens


def new_context(config: ContextConfig, trace: Trace, opening: Sequence[int], chat: ChatFormat) -> list[int]:
    """Token ids of the context that replaces the current one. ``opening``: tools, system prompt, question."""
    ids = list(opening)
    if config.policy == "discard_all":
        return ids
    newest = trace.turns[-1] if trace.turns else None
    for turn in trace.turns:
        ids += trace.tokens[turn.start : turn.end]
        pairs = zip(turn.calls, turn.results, strict=False)
        told = [(call.id, call.name, content_of(result) if turn is newest else HIDDEN) for call, result in pairs]
        ids += chat.encode(chat.results(told))
    return ids


def content_of(result: ToolResult) -> str | list[dict[str, str]]:
    """A result for the chat format: its text, and a placeholder for each picture."""
    if not result.images:
        return result.text
    text = [{"type": "text", "text": result.text}] if result.text else []
    return [*text, *({"type": "image"} for _ in result.images)]
