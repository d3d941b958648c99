"""An engine that speaks for one trace by a script: demonstrations for the cold start, and tests without a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from model.chat.kimi import Call, assistant_pieces, call_id
from model.tokenizer.tokenizer import Tokenizer
from rollouts.engine.base import Completion, Finish, Pictures, Sampling
from rollouts.episode import Trace

Action = list[tuple[str, dict[str, Any]]] | str  # tool calls of one turn (name, arguments), or the final answer
History = list[list[tuple[str, dict[str, Any], str]]]  # turns of (name, arguments, result text)


def history_of(trace: Trace) -> History:
    """The turns of ``trace`` as a script sees them."""
    return [
        [(call.name, call.arguments, result.text) for call, result in zip(turn.calls, turn.results, strict=False)]
        for turn in trace.turns
    ]


class ScriptedEngine:
    """``act(history) -> Action`` decides each turn of ``trace``; the action is rendered in the chat format."""

    def __init__(self, trace: Trace, tokenizer: Tokenizer, act: Callable[[History], Action]) -> None:
        self._trace, self._tokenizer, self._act = trace, tokenizer, act

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """The script's next turn as tokens (log-probs 0, version 0)."""
        action = self._act(history_of(self._trace))
        index = self._trace.tool_calls
        if isinstance(action, str):
            pieces = assistant_pieces(action, thinking=False)
        else:
            calls = [
                Call(id=call_id(name, index + i), name=name, arguments=arguments)
                for i, (name, arguments) in enumerate(action)
            ]
            pieces = assistant_pieces("", calls, thinking=False)
        tokens = self._tokenizer.encode_segments(pieces)
        return Completion(tokens=tokens, logprobs=[0.0] * len(tokens), finish=Finish.STOP, policy_version=0)

    async def release(self, session: str) -> None:
        """Nothing to release."""
