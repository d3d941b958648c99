"""An engine over OpenAI's chat completions: any model on any server plays an agent, for evaluation.

What an agent's context says is read back from its tokens as messages and sent; the answer is rendered in the chat
format and encoded, as ``ScriptedEngine`` does it. So budgets, contexts and stores are those of any episode. Token
counts are those of our vocabulary and log-probs are 0: such traces can be scored and shown, not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from model.chat.kimi import (
    CALL_ARGUMENT,
    CALL_BEGIN,
    END_THINK,
    IM_ASSISTANT,
    IM_END,
    IM_SYSTEM,
    IM_USER,
    Call,
    Piece,
    assistant_pieces,
    call_id,
)
from model.tokenizer.tokenizer import Tokenizer
from rollouts.engine.base import Completion, Finish, Pictures, Sampling
from rollouts.engine.chat.client import ChatServer, ContextFull, Usage
from rollouts.engine.client import BadAnswer, shown_text
from rollouts.engine.schemas import ChatChoice, ChatMessage
from rollouts.episode import Trace

MALFORMED = "malformed_arguments"  # the one argument of a call whose own were no JSON object: no tool takes it
_RETURN = "## Return of "
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
_CHARACTERS = 128  # of a token at most: the longest of large vocabularies are runs of spaces


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatModel:
    """A model of a server, as asked for by name."""

    server: ChatServer
    name: str


class ChatEngine:
    """Speaks for one ``trace`` whose agent has ``tools`` (OpenAI's form); what answers use is added to ``usage``."""

    def __init__(
        self, trace: Trace, tokenizer: Tokenizer, model: ChatModel, tools: Sequence[dict[str, Any]], usage: Usage
    ) -> None:
        self._trace, self._tokenizer, self._model = trace, tokenizer, model
        self._tools, self._usage = list(tools), usage
        self._ids: dict[str, str] = {}  # our id of a call -> the server's, which it may insist on

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
        tokens = self._tokenizer.encode_segments(assistant_pieces(_plain(choice.message.text), calls, thinking=False))
        finish = Finish.LENGTH if choice.finish_reason in _CUT else Finish.STOP
        return Completion(tokens=tokens, logprobs=[0.0] * len(tokens), finish=finish, policy_version=0)

    async def release(self, session: str) -> None:
        """Nothing to release."""

    def _body(self, prompt: list[int], sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model.name,
            "messages": messages_of(self._tokenizer.pieces(prompt), self._ids),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": sampling.seed & _SEED,
        }
        return body | ({"tools": self._tools} if self._tools else {})

    def _check(self, choice: ChatChoice, tokens: int) -> None:
        """BadAnswer where a model that may say ``tokens`` tokens cannot have ended so, or cannot have said so much."""
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
            calls.append(Call(id=call_id(name, number), name=name, arguments=read_arguments(call.function.arguments)))
            if call.id:
                self._ids[calls[-1].id] = _plain(call.id)
        return calls


def read_arguments(raw: Any) -> dict[str, Any]:
    """Arguments as an object; what is none becomes one that tools refuse, with the text, so that the model sees it."""
    if raw in (None, ""):
        return {}
    try:
        arguments = json.loads(raw) if isinstance(raw, str) else raw
        text = json.dumps(arguments, allow_nan=False, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return {MALFORMED: _plain(str(raw))}
    return json.loads(_plain(text)) if isinstance(arguments, dict) else {MALFORMED: _plain(str(raw))}


def messages_of(pieces: Iterable[Piece], ids: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The conversation that the chat format's ``pieces`` hold, without the declaration of tools.

    ``ids`` gives calls their server's ids back. Control tokens are known as such: no text can pose as a message.
    """
    messages: list[dict[str, Any]] = []
    frame: list[Piece] = []
    for piece in pieces:  # what follows the last IM_END is the generation prompt
        if piece != (IM_END, True):
            frame.append(piece)
            continue
        message = _message(frame, ids or {}, bool(messages) and messages[-1]["role"] in ("assistant", "tool"))
        messages += [message] if message else []
        frame = []
    return messages


def _message(frame: list[Piece], ids: dict[str, str], called: bool) -> dict[str, Any] | None:
    """One message; a system frame after an assistant's (``called``) is a tool's result. None: declaration of tools."""
    opening, name, body = frame[0][0], frame[1][0], frame[3:]
    text = "".join(part for part, control in body if not control)
    if opening == IM_ASSISTANT:
        return _assistant(body, ids)
    if opening == IM_USER:
        return {"role": "user", "content": text}
    if opening == IM_SYSTEM and called and text.startswith(_RETURN):
        identifier, _, content = text[len(_RETURN) :].partition("\n")
        return {"role": "tool", "tool_call_id": ids.get(identifier, identifier), "content": content}
    return None if name == "tool_declare" else {"role": "system", "content": text}


def _assistant(body: list[Piece], ids: dict[str, str]) -> dict[str, Any]:
    content, calls, at = "", [], (END_THINK, True)
    for piece in body:
        if piece[1]:
            at = piece
            if piece[0] == CALL_BEGIN:
                calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        elif at[0] == END_THINK:
            content += piece[0]
        elif at[0] == CALL_BEGIN:
            calls[-1]["id"] = ids.get(piece[0], piece[0])
            calls[-1]["function"]["name"] = piece[0].removeprefix("functions.").rpartition(":")[0]
        elif at[0] == CALL_ARGUMENT:
            calls[-1]["function"]["arguments"] = piece[0]
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    return message | ({"tool_calls": calls} if calls else {})


def _plain(text: str) -> str:
    """``text`` without lone surrogates, which no UTF-8 can hold."""
    return text.encode("utf-8", "replace").decode()
