"""An engine over OpenAI's chat completions: any model on any server as an agent, for evaluation.

An agent's context is converted from tokens to messages and sent; the answer is rendered in the chat format
and encoded, as in ``ScriptedEngine``. Budgets, contexts and stores work as for any episode. Token counts are
those of our vocabulary and log-probs are 0: such traces can be scored and shown, but not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.chat.base import Call, ChatFormat
from rollouts.engine.base import Completion, Finish, Pictures, Sampling
from rollouts.engine.chat.client import ChatServer, ContextFull, Usage
from rollouts.engine.client import BadAnswer, shown_text
from rollouts.engine.schemas import ChatChoice, ChatMessage
from rollouts.episode import Trace

MALFORMED = "malformed_arguments"  # replaces arguments that are not a JSON object: no tool takes it
_SEED = 0x7FFFFFFF  # servers take seeds of 31 bits
_CUT = ("length", "max_tokens")
_ENDS = {
    *_CUT,
    "stop",
    "tool_calls",
    "function_call",
    "content_filter",
    "eos",
    "eos_token",
    "end_turn",
    "stop_sequence",
}
_CHARACTERS = 128  # per token at most: the longest are runs of spaces


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatModel:
    """A model on a server."""

    server: ChatServer
    name: str


class ChatEngine:
    """The engine of one ``trace`` whose agent has ``tools`` (OpenAI's form); adds usage to ``usage``."""

    def __init__(
        self, trace: Trace, chat: ChatFormat, model: ChatModel, tools: Sequence[dict[str, Any]], usage: Usage
    ) -> None:
        self._trace, self._chat, self._model = trace, chat, model
        self._tools, self._usage = list(tools), usage
        self._ids: dict[str, str] = {}  # our id of a call -> the server's, which it may require

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """The model's next turn as tokens (log-probs 0, version 0).

        Raises ValueError (pictures), BadAnswer, and what ``ChatServer.complete`` raises.
        """
        if media:
            raise ValueError(f"{self._model.server.url}: pictures cannot be sent to a chat server")
        try:
            answer = await self._model.server.complete(self._body(prompt, sampling), deadline_s)
        except ContextFull:
            return Completion(tokens=[], logprobs=[], finish=Finish.LENGTH, policy_version=0)
        self._usage.add(answer.usage)
        choice = answer.choices[0]
        self._check(choice, sampling.max_new_tokens)
        calls = self._calls(choice.message)
        tokens = self._chat.encode(self._chat.assistant(_plain(choice.message.text), calls))
        finish = Finish.LENGTH if choice.finish_reason in _CUT else Finish.STOP
        return Completion(tokens=tokens, logprobs=[0.0] * len(tokens), finish=finish, policy_version=0)

    async def release(self, session: str) -> None:
        """Nothing to release."""

    def _body(self, prompt: list[int], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model.name,
            "messages": self._chat.messages(prompt, self._ids),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed & _SEED,
        }
        return body | ({"tools": self._tools} if self._tools else {})

    def _check(self, choice: ChatChoice, tokens: int) -> None:
        """BadAnswer if a model limited to ``tokens`` tokens cannot have ended so, or written so much."""
        where, message = f"{self._model.server.url}: choices.0", choice.message
        if choice.finish_reason is not None and choice.finish_reason.lower() not in _ENDS:
            known = ", ".join(sorted(_ENDS))
            raise BadAnswer(f"{where}.finish_reason is {shown_text(choice.finish_reason)!r}, none of {known}")
        asked = message.tool_calls or []
        said = len(message.text) + sum(len(str(call.function.arguments or "")) for call in asked)
        if said > _CHARACTERS * tokens or len(asked) > tokens:
            raise BadAnswer(
                f"{where}.message has {said:,} characters and {len(asked):,} calls, more than max_tokens={tokens} holds"
            )

    def _calls(self, message: ChatMessage) -> list[Call]:
        calls = []
        for number, call in enumerate(message.tool_calls or (), self._trace.tool_calls):
            name = _plain(call.function.name)
            arguments = read_arguments(call.function.arguments)
            calls.append(Call(id=self._chat.call_id(name, number), name=name, arguments=arguments))
            if call.id:
                self._ids[calls[-1].id] = _plain(call.id)
        return calls


def read_arguments(raw: Any) -> dict[str, Any]:
    """Arguments as an object; others become one that tools refuse, with the text, so that the model sees it."""
    if raw in (None, ""):
        return {}
    try:
        arguments = json.loads(raw) if isinstance(raw, str) else raw
        text = json.dumps(arguments, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return {MALFORMED: _plain(str(raw))}
    return json.loads(_plain(text)) if isinstance(arguments, dict) else {MALFORMED: _plain(str(raw))}


def _plain(text: str) -> str:
    """``text`` without lone surrogates, which UTF-8 cannot encode."""
    return text.encode("utf-8", "replace").decode()
