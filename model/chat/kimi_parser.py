"""Reads what the model wrote after the generation prompt: reasoning, content and tool calls, or why it is malformed.

Nothing is guessed or repaired and nothing raises: a turn either follows the K2.5 format or has a reason in
``malformed`` and no calls. From token ids, control tokens are known by their ids, so text that only looks like one
stays text; from text (an HTTP engine), the strings themselves have to do.
"""

from __future__ import annotations

import json
import math
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

_CONTROL = re.compile("(" + "|".join(re.escape(name) for name in SPECIAL_TOKENS if name.startswith("<")) + ")")
_CALL_ID = re.compile(r"functions\.(.*):(.*)", re.DOTALL)
_INDEX = re.compile("[0-9]+")


class PieceDecoder(Protocol):
    """What the parser needs of a tokenizer."""

    def pieces(self, ids: Iterable[int]) -> list[Piece]:
        """Token ids as pieces, control tokens known by id."""
        ...


class _MalformedError(Exception):
    """The turn broke the format; the message says how."""


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
    except _MalformedError as error:
        return ParsedTurn(content=reader.content, reasoning=reader.reasoning, malformed=str(error))
    return ParsedTurn(content=reader.content, reasoning=reader.reasoning, tool_calls=tuple(reader.calls))


class _Reader:
    """Walks over the pieces of one turn, one method a rule of the grammar."""

    def __init__(self, pieces: Sequence[Piece], tool_names: Collection[str] | None) -> None:
        self.pieces = pieces
        self.position = 0
        self.tool_names = tool_names
        self.content = ""
        self.reasoning = ""
        self.calls: list[Call] = []

    def turn(self, prefill: str | None) -> None:
        if prefill == THINK or (prefill is None and self._accept(THINK)):
            self.reasoning = self._text()
            self._expect(END_THINK, "the reasoning")
        self.content = self._text()
        if self._accept(SECTION_BEGIN):
            self._section()
        self._expect(IM_END, "the tool section" if self.calls else "the content")
        if self.position < len(self.pieces):
            raise _MalformedError(f"text after {IM_END}")

    def _section(self) -> None:
        self._blank("the tool section")
        while self._accept(CALL_BEGIN):
            self.calls.append(self._call())
            self._blank("the tool section")
        self._expect(SECTION_END, "the tool section")
        if not self.calls:
            raise _MalformedError("the tool section has no calls")
        if len({call.id for call in self.calls}) < len(self.calls):
            raise _MalformedError("two calls have the same id")
        self._blank("the turn, after its tool section,")

    def _call(self) -> Call:
        identifier = self._text().strip()
        self._expect(CALL_ARGUMENT, "the id of a call")
        arguments = self._text()
        self._expect(CALL_END, "the arguments of a call")
        return Call(id=identifier, name=self._name(identifier), arguments=_arguments(arguments))

    def _name(self, identifier: str) -> str:
        match = _CALL_ID.fullmatch(identifier)
        if match is None:
            raise _MalformedError(f"call id {_short(identifier)} is not functions.NAME:INDEX")
        name, index = match.groups()
        if not name or not _INDEX.fullmatch(index):
            raise _MalformedError(f"call id {_short(identifier)} has no {'index' if name else 'name'}")
        if self.tool_names is not None and name not in self.tool_names:
            raise _MalformedError(f"no tool named {_short(name)}")
        return name

    def _text(self) -> str:
        if self.position < len(self.pieces) and not self.pieces[self.position][1]:
            self.position += 1
            return self.pieces[self.position - 1][0]
        return ""

    def _blank(self, where: str) -> None:
        text = self._text()
        if text and not text.isspace():
            raise _MalformedError(f"{where} has text outside its calls")

    def _accept(self, control: str) -> bool:
        found = self.position < len(self.pieces) and self.pieces[self.position] == (control, True)
        self.position += found
        return found

    def _expect(self, control: str, where: str) -> None:
        if self._accept(control):
            return
        if self.position == len(self.pieces):
            raise _MalformedError(f"cut off in {where}: no {control}")
        raise _MalformedError(f"{where} ran into {self.pieces[self.position][0]}, expected {control}")


def _arguments(text: str) -> dict:
    try:
        value = _JSON.decode(text)
    except (ValueError, RecursionError) as error:
        raise _MalformedError(f"arguments are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise _MalformedError("arguments are not a JSON object")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{_short(text)} is too large for a number")
    return value


_JSON = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)  # made once: it costs as much as a call


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
