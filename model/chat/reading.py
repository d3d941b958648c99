"""What parsers of turns share: a walk over pieces, arguments as strict JSON, and how a broken turn is reported.

Nothing is guessed or repaired: a turn follows its format, or :class:`Malformed` says what broke it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from typing import Any

from model.chat.base import Piece


class Malformed(Exception):
    """The turn broke the format; the message says how."""


class Walk:
    """A walk over the pieces of one turn; neighbouring plain pieces must be joined."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = pieces
        self.position = 0

    @property
    def done(self) -> bool:
        """Whether all pieces have been read."""
        return self.position == len(self.pieces)

    def text(self) -> str:
        """The plain text that comes next; empty where a control token does."""
        if not self.done and not self.pieces[self.position][1]:
            self.position += 1
            return self.pieces[self.position - 1][0]
        return ""

    def blank(self, where: str) -> None:
        """Read blanks. Malformed where other text comes."""
        text = self.text()
        if text and not text.isspace():
            raise Malformed(f"{where} has text outside its calls")

    def accept(self, control: str) -> bool:
        """Read the control token where it comes next."""
        found = not self.done and self.pieces[self.position] == (control, True)
        self.position += found
        return found

    def expect(self, control: str, where: str) -> None:
        """Read the control token. Malformed where something else comes."""
        if self.accept(control):
            return
        if self.done:
            raise Malformed(f"cut off in {where}: no {control}")
        raise Malformed(f"{where} ran into {short(self.pieces[self.position][0])}, expected {control}")


def read_object(text: str, what: str = "arguments") -> dict[str, Any]:
    """``text`` as a JSON object. Malformed where it is none; NaN, infinity and numbers beyond float64 are none."""
    try:
        value = JSON.decode(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{what} are not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Malformed(f"{what} are not a JSON object")
    return value


def known_name(name: object, tools: Collection[str] | None) -> str:
    """``name`` as that of a tool on offer (``tools`` None: any). Malformed where it is none."""
    if not isinstance(name, str) or not name:
        raise Malformed("a call has no name")
    if tools is not None and name not in tools:
        raise Malformed(f"no tool named {short(name)}")
    return name


def short(text: str) -> str:
    """``text`` as shown in a message, at most 60 characters of it."""
    return repr(text if len(text) <= 60 else text[:60] + "…")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{short(text)} is too large for a number")
    return value


JSON = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)  # made once: it costs as much as a call
