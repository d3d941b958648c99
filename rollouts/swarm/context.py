"""Context management: what an agent goes on with when its context has grown too long.

The baselines that the Kimi K2.5 report compares swarms with (section on context sharding): ``discard_all`` drops the
whole history and begins again from the question (used with DeepSeek-V3.2), ``hide_tool_result`` keeps all that the
agent wrote and the newest round of tool results, and says of older ones only that they were there.

A new context is a new piece of the same trace (``Trace.cuts``): the agent reads it as a prompt, under fresh noise, and
each piece is trained as a row of its own, so that what is trained is what was seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.base import ToolResult
from model.chat.base import ChatFormat
from rollouts.config import ContextConfig
from rollouts.episode import Trace

HIDDEN = "hidden"


def context_limit(config: ContextConfig, trace: Trace) -> int | None:
    """Tokens of the context that ``trace`` may have before a turn; None where the engine's limit is the only one."""
    return config.orchestrator_tokens if trace.parent is None else config.subagent_tokens


def new_context(config: ContextConfig, trace: Trace, opening: Sequence[int], chat: ChatFormat) -> list[int]:
    """Token ids of the context that takes the place of the present one. ``opening``: tools, system prompt, question."""
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
    """What a chat format renders of a result: its text, and a placeholder for each picture."""
    if not result.images:
        return result.text
    text = [{"type": "text", "text": result.text}] if result.text else []
    return [*text, *({"type": "image"} for _ in result.images)]
