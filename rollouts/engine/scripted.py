"""An engine that plays a script for one trace: for demonstrations, and tests without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.chat.base import Call, ChatFormat
from rollouts.engine.base import Completion, Finish, Pictures, Sampling
from rollouts.episode import Trace

Action = list[tuple[str, dict[str, Any]]] | str  # tool calls of one turn (name, arguments), or the final answer
History = list[list[tuple[str, dict[str, Any], str]]]  # turns of (name, arguments, result text)


def history_of(trace: Trace) -> History:
    """The turns of ``trace`` in the form for scripts."""
    return [
        [(call.name, call.arguments, result.text) for call, result in zip(turn.calls, turn.results, strict=False)]
        for turn in trace.turns
    ]


class ScriptedEngine:
    """``act(history) -> Action`` decides each turn of ``trace``; the action is rendered in the chat format."""

    def __init__(self, trace: Trace, chat: ChatFormat, act: Callable[[History], Action]) -> None:
        self._trace, self._chat, self._act = trace, chat, act

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """The script's next turn as tokens (log-probs 0, version 0)."""
        action = self._act(history_of(self._trace))
        tokens = render_action(self._chat, action, self._trace.tool_calls)
        return Completion(tokens=tokens, logprobs=[0.0] * len(tokens), finish=Finish.STOP, policy_version=0)

    async def release(self, session: str) -> None:
        """Nothing to release."""


def render_action(chat: ChatFormat, action: Action, first: int) -> list[int]:
    """Token ids of ``action``, its calls numbered from ``first``."""
    if isinstance(action, str):
        return chat.encode(chat.assistant(action))
    calls = [
        Call(id=chat.call_id(name, first + i), name=name, arguments=arguments)
        for i, (name, arguments) in enumerate(action)
    ]
    return chat.encode(chat.assistant("", calls))
