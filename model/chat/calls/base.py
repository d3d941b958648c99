"""What readers of tool calls share: a turn as one text in which control tokens cannot be confused with their spelling.

A reader gets a turn without its reasoning and without the token that ends it, and gives content and calls, or raises
:class:`model.chat.reading.Malformed`. A marker that is a control token of the tokenizer is one in the text only where
the token stands; a marker that is ordinary text for it is looked for in the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from model.chat.base import Piece
from model.chat.reading import JSON, Malformed, read_object

_BEGIN, _END = "\ue000", "\ue001"  # around a control token; private characters
PYTHON = {"True": True, "False": False, "None": None}
_BLANKS = re.compile(r"\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a turn says. ``calls``: name and arguments each."""

    content: str = ""
    calls: tuple[tuple[Any, dict[str, Any]], ...] = ()
    reasoning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A turn as ``text``; ``special``: the tokenizer's control tokens; ``schemas``: tool -> its parameters' schema."""

    text: str
    special: Collection[str]
    schemas: Mapping[str, Any] = field(default_factory=dict)

    def mark(self, name: str) -> str:
        """How ``name`` stands in the text."""
        return f"{_BEGIN}{name}{_END}" if name in self.special else name

    def has(self, name: str) -> bool:
        """Whether ``name`` stands in the text."""
        return self.mark(name) in self.text

    def pattern(self, form: str) -> re.Pattern[str]:
        """A regular expression in which ``«NAME»`` stands for a marker; ``.`` matches newlines."""
        parts = re.split("«(.*?)»", form)
        parts[1::2] = [re.escape(self.mark(name)) for name in parts[1::2]]
        return re.compile("".join(parts), re.DOTALL)

    def value(self, tool: str, key: str, text: str) -> Any:
        """A value that is written without quotes: text where the schema says so or it is no JSON, else JSON."""
        kind = ((self.schemas.get(tool) or {}).get("properties") or {}).get(key)
        if isinstance(kind, Mapping) and kind.get("type") == "string":
            return text
        if text.strip() in PYTHON:  # as templates write them that forget to make JSON of it
            return PYTHON[text.strip()]
        try:
            return JSON.decode(text.strip())
        except (ValueError, RecursionError):
            return text


Reader = Callable[[Turn], Said]


def flat(pieces: Iterable[Piece]) -> str:
    """``pieces`` as one text, control tokens marked as such. Malformed where text holds the marking's characters."""
    out = []
    for text, control in pieces:
        if not control and (_BEGIN in text or _END in text):
            raise Malformed("the text holds the private character U+E000 or U+E001")
        out.append(f"{_BEGIN}{text}{_END}" if control else text)
    return "".join(out)


def plain(text: str) -> str:
    """``text``, which must hold no control token. Malformed where it does."""
    if _BEGIN in text:
        found = text[text.index(_BEGIN) + 1 : text.index(_END)]
        raise Malformed(f"unexpected {found}")
    return text


def sections(turn: Turn, begin: str, end: str) -> tuple[str, list[str]]:
    """Content before the first ``begin``, and what stands between each ``begin`` and its ``end``.

    Malformed where other text stands between or after them, or one is not closed. The end of JSON is found by reading.
    """
    opened, closed = turn.mark(begin), turn.mark(end)
    content, found, rest = turn.text.partition(opened)
    bodies = []
    while found:
        at = json_end(rest)
        stop = rest.find(closed, at)
        if stop < 0:
            raise Malformed(f"a call without {end}")
        bodies.append(rest[:stop])
        between, found, rest = rest[stop + len(closed) :].partition(opened)
        if between.strip():
            raise Malformed("the turn has text outside its calls")
    if closed in content:
        raise Malformed(f"{end} without {begin}")
    return plain(content), bodies


def json_end(text: str, at: int = 0) -> int:
    """Where the JSON object or list that begins at ``at`` ends; ``at`` where there is none."""
    begin = _BLANKS.match(text, at).end()  # type: ignore[union-attr]
    if text[begin : begin + 1] not in ("{", "["):
        return at
    try:
        return JSON.raw_decode(text, begin)[1]
    except (ValueError, RecursionError):
        return at


def named(tree: Any, name: str, arguments: str, *, more: Collection[str] = ()) -> tuple[Any, dict[str, Any]]:
    """The call in an object with the keys ``name`` and ``arguments`` (and ``more``, which may be missing)."""
    if not isinstance(tree, Mapping) or {name, arguments} - set(tree) or set(tree) - {name, arguments, *more}:
        raise Malformed(f"a call must have exactly the keys {name} and {arguments}")
    if not isinstance(tree[arguments], dict):
        raise Malformed("arguments are not a JSON object")
    return tree[name], tree[arguments]


def object_of(text: str) -> dict[str, Any]:
    """``text`` as arguments in JSON."""
    return read_object(plain(text).strip())


def items_of(text: str) -> list[Any]:
    """``text`` as a JSON list."""
    return read_object('{"all": ' + plain(text).strip() + "}", "calls")["all"]
