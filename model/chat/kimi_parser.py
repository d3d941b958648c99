"""Reads what the model wrote after the generation prompt: reasoning, content and tool calls, or why it is malformed.

Nothing is guessed or repaired and nothing raises: a turn either follows the K2.5 format or has a reason in
``malformed`` and no calls. From token ids, control tokens are known by their ids, so text that only looks like one
stays text; from text (an HTTP engine), the strings themselves have to do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from model.chat.base import Call, ParsedTurn, Piece
from model.chat.kimi_tokens import (
    CALL_ARGUMENT,
    CALL_BEGIN,
    CALL_END,
    END_THINK,
    IM_END,
    SECTION_BEGIN,
    SECTION_END,
    SPECIAL_TOKENS,
    THINK,
)
from model.chat.reading import Malformed, Walk, known_name, read_object, short

_CONTROL = re.compile("(" + "|".join(re.escape(name) for name in SPECIAL_TOKENS if name.startswith("<")) + ")")
_CALL_ID = re.compile(r"functions\.(.*):(.*)", re.DOTALL)
_INDEX = re.compile("[0-9]+")


class PieceDecoder(Protocol):
    """What the parser needs of a tokenizer."""

    def pieces(self, ids: Iterable[int]) -> list[Piece]:
        """Token ids as pieces, control tokens known by id."""
        ...


def parse(text: str, *, prefill: str | None = THINK, tool_names: Collection[str] | None = None) -> ParsedTurn:
    """Parse generated text, ``<|im_end|>`` included.

    ``prefill`` is what the prompt ended in: ``<think>``, as ``render`` leaves it by default, ``<think></think>``, or
    neither (None). ``tool_names``: the tools on offer, any other name is malformed; None: any name is taken.
    """
    parts = _CONTROL.split(text)
    pieces = [(part, bool(index % 2)) for index, part in enumerate(parts) if part]
    return parse_pieces(pieces, prefill=prefill, tool_names=tool_names)


def parse_assistant_ids(
    tokenizer: PieceDecoder, ids: Sequence[int], *, prefill: str | None, tool_names: Collection[str] | None = None
) -> ParsedTurn:
    """Parse generated token ids."""
    return parse_pieces(tokenizer.pieces(ids), prefill=prefill, tool_names=tool_names)


def parse_pieces(
    pieces: Sequence[Piece], *, prefill: str | None, tool_names: Collection[str] | None = None
) -> ParsedTurn:
    """Parse generated pieces; neighbouring plain pieces must be joined."""
    reader = _Reader(pieces, tool_names)
    try:
        reader.turn(prefill)
    except Malformed as error:
        return ParsedTurn(content=reader.content, reasoning=reader.reasoning, malformed=str(error))
    return ParsedTurn(content=reader.content, reasoning=reader.reasoning, tool_calls=tuple(reader.calls))


class _Reader(Walk):
    """One method a rule of the grammar."""

    def __init__(self, pieces: Sequence[Piece], tool_names: Collection[str] | None) -> None:
        super().__init__(pieces)
        self.tool_names = tool_names
        self.content = ""
        self.reasoning = ""
        self.calls: list[Call] = []

    def turn(self, prefill: str | None) -> None:
        if prefill == THINK or (prefill is None and self.accept(THINK)):
            self.reasoning = self.text()
            self.expect(END_THINK, "the reasoning")
        self.content = self.text()
        if self.accept(SECTION_BEGIN):
            self._section()
        self.expect(IM_END, "the tool section" if self.calls else "the content")
        if not self.done:
            raise Malformed(f"text after {IM_END}")

    def _section(self) -> None:
        self.blank("the tool section")
        while self.accept(CALL_BEGIN):
            self.calls.append(self._call())
            self.blank("the tool section")
        self.expect(SECTION_END, "the tool section")
        if not self.calls:
            raise Malformed("the tool section has no calls")
        if len({call.id for call in self.calls}) < len(self.calls):
            raise Malformed("two calls have the same id")
        self.blank("the turn, after its tool section,")

    def _call(self) -> Call:
        identifier = self.text().strip()
        self.expect(CALL_ARGUMENT, "the id of a call")
        arguments = self.text()
        self.expect(CALL_END, "the arguments of a call")
        return Call(id=identifier, name=self._name(identifier), arguments=read_object(arguments))

    def _name(self, identifier: str) -> str:
        match = _CALL_ID.fullmatch(identifier)
        if match is None:
            raise Malformed(f"call id {short(identifier)} is not functions.NAME:INDEX")
        name, index = match.groups()
        if not name or not _INDEX.fullmatch(index):
            raise Malformed(f"call id {short(identifier)} has no {'index' if name else 'name'}")
        return known_name(name, self.tool_names)
