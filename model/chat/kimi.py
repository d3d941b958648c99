"""The K2.5 chat template, rendered in one go or turn by turn, and never letting text pose as a control token.

Everything is rendered as *pieces*: ``(text, is_control)``. Only pieces that the template itself writes are control
tokens; prompts, tool results and arguments are plain text whatever they contain (``Tokenizer.encode_segments``). The
``render`` functions join the pieces where only the text is wanted.

Two ways that agree, by ``prompt + assistant + results + assistant + ... == chat(preserve_thinking=True)``:

- ``chat_pieces``: a whole conversation, as a server renders it. A finished answer rewrites the turns before it (their
  reasoning is dropped), so this must not be used to continue sampled tokens;
- ``prompt_pieces``, ``assistant_pieces``, ``tool_result_pieces``: one segment each, rendered once and appended.

:class:`KimiChat` is the second way as the contract that rollouts know (:class:`model.chat.base.ChatFormat`).

Source of the format: the chat template of Kimi K2.5. Messages and tools are OpenAI-style dictionaries.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from model.chat.base import Call, ChatFormat, Message, ParsedTurn, Piece, Tool, dump_arguments
from model.chat.kimi_messages import messages_of
from model.chat.kimi_parser import parse, parse_assistant_ids, parse_pieces
from model.chat.kimi_tokens import (
    BOS,
    CALL_ARGUMENT,
    CALL_BEGIN,
    CALL_END,
    END_THINK,
    EOS,
    EOT,
    IM_ASSISTANT,
    IM_END,
    IM_MIDDLE,
    IM_SYSTEM,
    IM_USER,
    MEDIA_BEGIN,
    MEDIA_CONTENT,
    MEDIA_END,
    MEDIA_PAD,
    PAD,
    RETURN_OF,
    SECTION_BEGIN,
    SECTION_END,
    SPECIAL_TOKENS,
    THINK,
    UNK,
    call_id,
)
from model.chat.kimi_tools import declare_tools

# The whole format from one place: the tokens and the parser have modules of their own.
# fmt: off
__all__ = [
    "BOS", "CALL_ARGUMENT", "CALL_BEGIN", "CALL_END", "END_THINK", "EOS", "EOT", "IM_ASSISTANT", "IM_END",
    "IM_MIDDLE", "IM_SYSTEM", "IM_USER", "MEDIA_BEGIN", "MEDIA_CONTENT", "MEDIA_END", "MEDIA_PAD", "PAD",
    "SECTION_BEGIN", "SECTION_END", "SPECIAL_TOKENS", "THINK", "UNK", "Call", "KimiChat", "Message", "ParsedTurn",
    "Piece", "assistant_pieces", "call_id", "chat_pieces", "dump_arguments", "join", "parse", "parse_assistant_ids",
    "parse_pieces", "prefill", "prompt_pieces", "render", "render_assistant", "render_prompt", "render_tool_results",
    "tool_result_pieces", "user_pieces",
]
# fmt: on

_OPENING = {"user": IM_USER, "assistant": IM_ASSISTANT}
_IMAGES = ("image", "image_url")


def prefill(*, thinking: bool) -> str:
    """What the generation prompt ends in; also the ``prefill`` of the parser."""
    return THINK if thinking else THINK + END_THINK


def join(pieces: Iterable[Piece]) -> str:
    """The text of ``pieces``."""
    return "".join(text for text, _ in pieces)


# ------------------------------------------------------------------ a whole conversation


def chat_pieces(
    messages: Sequence[Message],
    tools: Iterable[Mapping[str, Any]] | None = None,
    *,
    thinking: bool = True,
    preserve_thinking: bool = False,
    add_generation_prompt: bool = True,
) -> list[Piece]:
    """A whole conversation. Reasoning up to the last assistant turn without calls is dropped unless preserved."""
    pieces: list[Piece] = []
    declaration = declare_tools(tools or ())
    if declaration:
        pieces += [(IM_SYSTEM, True), ("tool_declare", False), (IM_MIDDLE, True), (declaration, False), (IM_END, True)]
    answered = _last_answer(messages)
    for index, message in enumerate(messages):
        keep = thinking and (preserve_thinking or index > answered)
        pieces.extend(_message(message, keep_reasoning=keep))
    if add_generation_prompt:
        pieces += _generation_prompt(thinking)
    return pieces


def render(
    messages: Sequence[Message],
    tools: Iterable[Mapping[str, Any]] | None = None,
    *,
    thinking: bool = True,
    preserve_thinking: bool = False,
    add_generation_prompt: bool = True,
) -> str:
    """Text of :func:`chat_pieces`: what K2.5's template gives for ``messages`` and ``tools``."""
    flags = {"preserve_thinking": preserve_thinking, "add_generation_prompt": add_generation_prompt}
    return join(chat_pieces(messages, tools, thinking=thinking, **flags))


# ------------------------------------------------------------------ turn by turn


def prompt_pieces(
    messages: Sequence[Message], tools: Iterable[Mapping[str, Any]] | None = None, *, thinking: bool = True
) -> list[Piece]:
    """The opening of a trace: tool declaration, messages, generation prompt."""
    return chat_pieces(messages, tools, thinking=thinking, preserve_thinking=True)


def tool_result_pieces(results: Iterable[tuple[str, str, Any]], *, thinking: bool = True) -> list[Piece]:
    """What follows a sampled turn with calls: its results ``(call id, tool name, content)`` and the next prompt.

    A content is text, or a list of parts of type ``text`` and ``image`` as in a message.
    An empty tool name gives the role word ``tool``, which is what Kimi writes for results without a ``name``.
    """
    pieces: list[Piece] = []
    for identifier, name, content in results:
        pieces.extend(_frame(IM_SYSTEM, name or "tool", [_return_of(identifier), *_content(content)]))
    return pieces + _generation_prompt(thinking)


def user_pieces(content: str, *, thinking: bool = True) -> list[Piece]:
    """What follows a sampled turn that is answered by the user (or by the harness in the user's place)."""
    return [*_frame(IM_USER, "user", [(content, False)]), *_generation_prompt(thinking)]


def assistant_pieces(
    content: str, calls: Iterable[Call] = (), *, reasoning: str = "", thinking: bool = True
) -> list[Piece]:
    """Exactly what the model is to generate after the generation prompt, ``<|im_end|>`` included."""
    if reasoning and not thinking:
        raise ValueError("reasoning cannot be written with thinking off: the prompt has already closed it")
    pieces: list[Piece] = [(reasoning, False), (END_THINK, True)] if thinking else []
    pieces.append((content, False))
    pieces.extend(_calls((call.id, dump_arguments(call.arguments)) for call in calls))
    return [piece for piece in [*pieces, (IM_END, True)] if piece[0]]


def render_prompt(
    messages: Sequence[Message], tools: Iterable[Mapping[str, Any]] | None = None, *, thinking: bool = True
) -> str:
    """Text of :func:`prompt_pieces`."""
    return join(prompt_pieces(messages, tools, thinking=thinking))


def render_tool_results(results: Iterable[tuple[str, str, str]], *, thinking: bool = True) -> str:
    """Text of :func:`tool_result_pieces`."""
    return join(tool_result_pieces(results, thinking=thinking))


def render_assistant(content: str, calls: Iterable[Call] = (), *, reasoning: str = "", thinking: bool = True) -> str:
    """Text of :func:`assistant_pieces`."""
    return join(assistant_pieces(content, calls, reasoning=reasoning, thinking=thinking))


# ------------------------------------------------------------------ parts


def _last_answer(messages: Sequence[Message]) -> int:
    for index in range(len(messages) - 1, -1, -1):
        if messages[index]["role"] == "assistant" and not messages[index].get("tool_calls"):
            return index
    return -1


def _message(message: Message, *, keep_reasoning: bool) -> Iterator[Piece]:
    role = message["role"]
    body = _content(message.get("content"))
    if role == "tool":
        body = [_return_of(message.get("tool_call_id") or ""), *body]
    if role == "assistant":
        reasoning = (message.get("reasoning_content") or "") if keep_reasoning else ""
        body = [(THINK, True), (reasoning, False), (END_THINK, True), *body]
        body += _calls((call.get("id") or "", _arguments(call)) for call in message.get("tool_calls") or ())
    return _frame(_OPENING.get(role, IM_SYSTEM), message.get("name") or role, body)


def _frame(opening: str, name: str, body: Iterable[Piece]) -> Iterator[Piece]:
    yield (opening, True)
    yield (name, False)
    yield (IM_MIDDLE, True)
    yield from (piece for piece in body if piece[0])
    yield (IM_END, True)


def _generation_prompt(thinking: bool) -> list[Piece]:
    pieces = [(IM_ASSISTANT, True), ("assistant", False), (IM_MIDDLE, True), (THINK, True)]
    return pieces if thinking else [*pieces, (END_THINK, True)]


def _return_of(identifier: str) -> Piece:
    return (f"{RETURN_OF}{identifier}\n", False)


def _calls(calls: Iterable[tuple[str, str]]) -> list[Piece]:
    pieces: list[Piece] = []
    for identifier, arguments in calls:
        pieces += [(CALL_BEGIN, True), (identifier, False), (CALL_ARGUMENT, True), (arguments, False), (CALL_END, True)]
    return [(SECTION_BEGIN, True), *pieces, (SECTION_END, True)] if pieces else []


def _arguments(call: Mapping[str, Any]) -> str:
    """Arguments of a call in a history: as written, or dumped the way the template dumps a dictionary."""
    arguments = call["function"].get("arguments", "")
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _content(content: Any) -> list[Piece]:
    if content is None or isinstance(content, str):
        return [(content or "", False)]
    pieces: list[Piece] = []
    for part in content:
        if part["type"] == "text":
            pieces.append((part["text"], False))
        elif part["type"] in _IMAGES:
            pieces += [(MEDIA_BEGIN, True), ("image", False), (MEDIA_CONTENT, True), (MEDIA_PAD, True)]
            pieces += [(MEDIA_END, True), ("\n", False)]
        else:
            raise ValueError(f"content part of type {part['type']!r}: the template renders text and image parts")
    return pieces


# ------------------------------------------------------------------ the contract


class KimiChat(ChatFormat):
    """K2.5's format over a tokenizer with its control tokens."""

    picture = MEDIA_PAD
    control = SPECIAL_TOKENS

    def conversation(
        self, messages: Sequence[Message], tools: Iterable[Tool] = (), *, prompt: bool = True
    ) -> list[Piece]:
        """See :func:`chat_pieces`; reasoning is kept."""
        return chat_pieces(
            messages, tools, thinking=self.thinking, preserve_thinking=True, add_generation_prompt=prompt
        )

    def user(self, content: str) -> list[Piece]:
        """See :func:`user_pieces`."""
        return user_pieces(content, thinking=self.thinking)

    def results(self, results: Iterable[tuple[str, str, Any]]) -> list[Piece]:
        """See :func:`tool_result_pieces`."""
        return tool_result_pieces(results, thinking=self.thinking)

    def assistant(self, content: str, calls: Iterable[Call] = (), *, reasoning: str = "") -> list[Piece]:
        """See :func:`assistant_pieces`."""
        return assistant_pieces(content, calls, reasoning=reasoning, thinking=self.thinking)

    def closing(self, token: int) -> list[Piece]:
        """``<|im_end|>`` where ``token`` is another."""
        return [] if token in self.stop_ids else [(IM_END, True)]

    def call_id(self, name: str, index: int) -> str:
        """``functions.NAME:INDEX``."""
        return call_id(name, index)

    def tool_name(self, call_id: str) -> str | None:
        """NAME of ``functions.NAME:INDEX``."""
        if call_id.startswith("functions.") and ":" in call_id:
            return call_id.removeprefix("functions.").rpartition(":")[0]
        return None

    def parse(self, ids: Sequence[int], *, tools: Collection[str] | None = None, first: int = 0) -> ParsedTurn:
        """See :func:`parse_assistant_ids`; also ids that no token has are malformed."""
        if max(ids, default=0) >= self.tokenizer.vocab_size:
            return ParsedTurn(malformed="a token of an unused embedding row")
        return parse_assistant_ids(self.tokenizer, ids, prefill=prefill(thinking=self.thinking), tool_names=tools)

    def messages(self, ids: Iterable[int], call_ids: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """See :func:`messages_of`."""
        return messages_of(self.tokenizer.pieces(ids), call_ids)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """``<|im_end|>``."""
        return (self.tokenizer.special[IM_END],)
