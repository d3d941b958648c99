"""ChatML with ``<tool_call>`` JSON, as Qwen2.5 and Qwen3 speak it (and plain ChatML: SmolLM2).

    <|im_start|>system\\n…<|im_end|>\\n<|im_start|>user\\n…<|im_end|>\\n<|im_start|>assistant\\n…<|im_end|>

A turn ends in ``<|im_end|>``; the newline after it is part of what comes next. Results of one turn stand in one user
message, each in ``<tool_response>``. Where the model reasons, its reasoning stays in the trace: published templates
drop that of earlier turns when they render a conversation anew, which is never done here.

Source of the format: the chat templates of Qwen2.5-Instruct and Qwen3, to which the tests hold it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

from model.chat.base import Call, ChatFormat, Message, ParsedTurn, Piece, Tool, Vocabulary
from model.chat.hermes_parser import (
    CALL,
    END_CALL,
    END_RESULT,
    END_THINK,
    IM_END,
    IM_START,
    RESULT,
    THINK,
    call_id,
    cut,
    messages_of,
    parse,
)
from model.chat.hermes_tools import FOOT, declare, to_json

Reasoning = Literal["none", "optional", "always"]
_ENDS = ("<|endoftext|>",)  # other tokens in which these models may end; the turn is malformed then


class HermesChat(ChatFormat):
    """See the module. ``lines``: declare tools by one line each; ``system``: what stands there where no system message
    is given; ``reasoning``: whether the model can reason (``optional``: Qwen3, whose prompt closes the reasoning
    where it is off; ``always``: its prompt opens it)."""

    control = (IM_START, IM_END)

    def __init__(
        self,
        tokenizer: Vocabulary | None = None,
        *,
        thinking: bool = False,
        lines: bool = False,
        system: str = "",
        reasoning: Reasoning = "none",
    ) -> None:
        """ValueError where ``thinking`` is what the model cannot do."""
        super().__init__(tokenizer, thinking=thinking)
        if thinking and reasoning == "none":
            raise ValueError("the model's chat template knows no reasoning: set rollouts.thinking to false")
        if not thinking and reasoning == "always":
            raise ValueError("the model's chat template always opens the reasoning: set rollouts.thinking to true")
        self._lines, self._system, self._reasoning = lines, system, reasoning
        self._special = frozenset(tokenizer.special) if tokenizer is not None else frozenset((THINK, CALL, RESULT))

    # ---------------------------------------------------------------- rendering

    def conversation(
        self, messages: Sequence[Message], tools: Iterable[Tool] = (), *, prompt: bool = True
    ) -> list[Piece]:
        """System message with the tools, then ``messages``. Reasoning stays where thinking is on."""
        said = self._system
        if messages and messages[0]["role"] == "system":
            said, messages = _text(messages[0].get("content")), messages[1:]
        declared = declare(tools, lines=self._lines)
        said = f"{said}\n\n{declared}" if said and declared else said or declared
        how = cut([(FOOT, False)], [mark for mark in (CALL, END_CALL) if mark in self._special]) if declared else []
        frames = [[*self._begin("system"), (said, False), *how, (IM_END, True)]] if said else []
        return self._rendered([*frames, *self._frames(messages)], prompt)

    def user(self, content: str) -> list[Piece]:
        """A newline, the message, the prompt."""
        return self._after([{"role": "user", "content": content}])

    def more(self, messages: Sequence[Message], after: int) -> list[Piece]:
        """``<|im_end|>`` where it is missing, a newline, the messages."""
        return [*self.closing(after), *self._after(messages)]

    def results(self, results: Iterable[tuple[str, str, Any]]) -> list[Piece]:
        """All in one user message, in the order of the calls."""
        return self._after([{"role": "tool", "content": content} for _, _, content in results])

    def assistant(self, content: str, calls: Iterable[Call] = (), *, reasoning: str = "") -> list[Piece]:
        """See :meth:`model.chat.base.ChatFormat.assistant`."""
        if reasoning and not self.thinking:
            raise ValueError("reasoning cannot be written with thinking off: the prompt has already closed it")
        dumped = [(call.name, to_json(call.arguments)) for call in calls]
        pieces = [*self._thought(reasoning, opened=self._reasoning == "always"), *self._body(content, dumped)]
        return [piece for piece in [*pieces, (IM_END, True)] if piece[0]]

    def closing(self, token: int) -> list[Piece]:
        """``<|im_end|>`` where ``token`` is another."""
        return [] if token == self.tokenizer.special[IM_END] else [(IM_END, True)]

    def call_id(self, name: str, index: int) -> str:
        """``call_INDEX_NAME``; it is not written."""
        return call_id(name, index)

    def tool_name(self, call_id: str) -> str | None:
        """NAME of ``call_INDEX_NAME``."""
        kind, _, rest = call_id.partition("_")
        index, _, name = rest.partition("_")
        return name if kind == "call" and index.isdigit() and name else None

    def arguments(self, arguments: Mapping[str, Any]) -> str:
        """JSON as templates write it, with blanks after separators."""
        return to_json(arguments)

    def _after(self, messages: Sequence[Message]) -> list[Piece]:
        return [("\n", False), *self._rendered(self._frames(messages), prompt=True)]

    def _rendered(self, frames: Sequence[Sequence[Piece]], prompt: bool) -> list[Piece]:
        if prompt:
            opened: list[Piece] = []
            if self._reasoning == "always":
                opened = [self._mark(THINK), ("\n", False)]
            elif self._reasoning == "optional" and not self.thinking:
                opened = [self._mark(THINK), ("\n\n", False), self._mark(END_THINK), ("\n\n", False)]
            frames = [*frames, [*self._begin("assistant"), *opened]]
        pieces: list[Piece] = []
        for frame in frames:
            pieces += [("\n", False)] if pieces else []
            pieces += [piece for piece in frame if piece[0]]
        return pieces

    def _frames(self, messages: Sequence[Message]) -> list[list[Piece]]:
        frames: list[list[Piece]] = []
        for is_result, group in groupby(messages, key=lambda message: message["role"] == "tool"):
            if is_result:
                body: list[Piece] = []
                for message in group:
                    body += [("\n", False)] if body else []
                    body += [self._mark(RESULT), (f"\n{_text(message.get('content'))}\n", False)]
                    body.append(self._mark(END_RESULT))
                frames.append([*self._begin("user"), *body, (IM_END, True)])
                continue
            frames += [[*self._begin(message["role"]), *self._said(message), (IM_END, True)] for message in group]
        return frames

    def _said(self, message: Message) -> list[Piece]:
        content = _text(message.get("content"))
        if message["role"] != "assistant":
            return [(content, False)]
        reasoning = (message.get("reasoning_content") or "") if self.thinking else ""
        functions = [call["function"] for call in message.get("tool_calls") or ()]
        calls = [(one["name"], _given(one.get("arguments", {}))) for one in functions]
        return [*(self._thought(reasoning) if reasoning else []), *self._body(content, calls)]

    def _thought(self, reasoning: str, *, opened: bool = False) -> list[Piece]:
        if not self.thinking:
            return []
        begin = [] if opened else [self._mark(THINK), ("\n", False)]
        return [*begin, (f"{reasoning}\n", False), self._mark(END_THINK), ("\n\n", False)]

    def _body(self, content: str, calls: Iterable[tuple[str, str]]) -> list[Piece]:
        pieces: list[Piece] = [(content, False)]
        for name, arguments in calls:
            pieces += [("\n", False)] if content or len(pieces) > 1 else []
            pieces += [self._mark(CALL), (f'\n{{"name": {to_json(name)}, "arguments": {arguments}}}\n', False)]
            pieces.append(self._mark(END_CALL))
        return pieces

    def _begin(self, role: str) -> list[Piece]:
        return [(IM_START, True), (f"{role}\n", False)]

    def _mark(self, name: str) -> Piece:
        """``<tool_call>`` and the like: a control token where the vocabulary has it as one."""
        return (name, name in self._special)

    # ---------------------------------------------------------------- reading

    def parse(self, ids: Sequence[int], *, tools: Collection[str] | None = None, first: int = 0) -> ParsedTurn:
        """See :func:`model.chat.hermes_parser.parse`; ids that no token has are malformed."""
        if max(ids, default=0) >= self.tokenizer.vocab_size:
            return ParsedTurn(malformed="a token of an unused embedding row")
        return parse(
            self.tokenizer.pieces(ids),
            special=self._special,
            tools=tools,
            first=first,
            prefill=self._reasoning == "always",
            reasons=self.thinking,
        )

    def messages(self, ids: Iterable[int], call_ids: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """See :func:`model.chat.hermes_parser.messages_of`."""
        return messages_of(self.tokenizer.pieces(ids), call_ids or {}, self._special)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """``<|im_end|>``, and what ends a text where the vocabulary has it."""
        return tuple(self.tokenizer.special[name] for name in (IM_END, *_ENDS) if name in self._special)


def _given(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else to_json(arguments)


def _text(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if other := next((part["type"] for part in content if part["type"] != "text"), None):
        raise ValueError(f"content part of type {other!r}: ChatML shows text only")
    return "".join(part["text"] for part in content)
