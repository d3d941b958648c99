"""Rows of JSON and JSON Lines, whatever the suffix: each with the line on which it begins.

Stricter than ``json``: repeated names, ``NaN`` and ``Infinity`` are refused; numbers keep their text, since
``12.50`` as an answer is not ``12.5``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any

from envs.data.problems import Problems, show

_WRAPPERS = ("tasks", "data", "rows")  # keys of an object that may hold the list of rows
_BAD = object()
_BLANK = re.compile(r"\s*")


class Written(float):
    """A number that knows its text."""

    written: str

    def __new__(cls, text: str) -> Written:
        """The number in ``text``; ValueError if it is beyond all floats."""
        number = super().__new__(cls, text)
        if math.isinf(number):
            raise ValueError(f"the number {text[:40]} is too large")
        number.written = text
        return number


def parse_json(text: str) -> Any:
    """The value of ``text``, read as strictly as a file of rows; ValueError says what is wrong."""
    try:
        return _DECODER.decode(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_rows(text: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    """``("line 3", value)`` of every row; bad JSON is reported, and reading goes on with the next line."""
    start = _skip(text, 0)
    if start == len(text):
        problems.add("", "the file is empty; write one object a line")
        return
    reader = _Reader(text, problems)
    if text[start] == "[":
        yield from reader.whole_list(start)
    elif (listed := _wrapped(text, start)) is not None:
        yield from reader.elements(listed)
    else:
        yield from reader.lines(start)


class _Reader:
    """Walks over a text, counting lines."""

    def __init__(self, text: str, problems: Problems) -> None:
        self.text, self.problems = text, problems
        self._at, self._line = 0, 1

    def lines(self, at: int) -> Iterator[tuple[str, Any]]:
        """One value per line; after a fault the next line that opens an object."""
        while at < len(self.text):
            where = self.where(at)
            found = self.value(at, where, "write one object a line")
            if found is None:
                at = self._next_object(at)
                continue
            value, end = found
            if value is _BAD:
                at = _skip(self.text, end)
                continue
            stop = self.text.find("\n", end)
            stop = len(self.text) if stop < 0 else stop
            if rest := self.text[end:stop].strip():
                self.problems.add(where, f"not JSON: {show(rest, 40)} after the object; write one object a line")
            else:
                yield where, value
            at = _skip(self.text, stop)

    def whole_list(self, at: int) -> Iterator[tuple[str, Any]]:
        """The elements of the list at ``at``, or lines if more than one value follows."""
        end = self._end(at)
        if end is not None and _skip(self.text, end) < len(self.text):
            yield from self.lines(at)
        else:
            yield from self.elements(at)

    def elements(self, at: int) -> Iterator[tuple[str, Any]]:
        """The elements of the list that begins at ``at``; the first fault ends it."""
        at = _skip(self.text, at + 1)
        if self.text[at : at + 1] == "]":
            self.problems.add(self.where(at), "the list is empty; write one object for each row")
            return
        number, line = 0, ""
        while True:
            number, before, line = number + 1, line, self.where(at)
            where = f"{line}, row {number}" if line == before else line  # a file may be a single line
            found = self.value(at, where, "the rows after it were not read")
            if found is None:
                return
            if found[0] is not _BAD:
                yield where, found[0]
            at = _skip(self.text, found[1])
            if self.text[at : at + 1] == "]":
                return
            if self.text[at : at + 1] != ",":
                self.problems.add(self.where(at), "not JSON: a comma or ] is missing after the object that ends here")
                return
            at = _skip(self.text, at + 1)

    def value(self, at: int, where: str, cure: str) -> tuple[Any, int] | None:
        """The value at ``at`` (``_BAD`` if it is unusable JSON) and its end; None if it is not JSON."""
        try:
            return _DECODER.raw_decode(self.text, at)
        except json.JSONDecodeError as fault:
            column = fault.pos - (self.text.rfind("\n", 0, fault.pos) + 1) + 1
            self.problems.add(
                where, f"not JSON ({fault.msg}, {self.where(fault.pos, keep=True)} column {column}); {cure}"
            )
        except ValueError as fault:
            self.problems.add(where, f"JSON that cannot be used: {fault}")
            return _BAD, _LENIENT.raw_decode(self.text, at)[1]
        except RecursionError:
            self.problems.add(where, "nested too deeply to be read")
        return None

    def where(self, at: int, *, keep: bool = False) -> str:
        """``line N`` of position ``at``."""
        if keep:
            return f"line {self.text.count(chr(10), 0, at) + 1}"
        if at < self._at:
            self._at, self._line = 0, 1
        self._line += self.text.count("\n", self._at, at)
        self._at = at
        return f"line {self._line}"

    def _next_object(self, at: int) -> int:
        while (at := self.text.find("\n", at)) >= 0:
            at += 1
            if self.text[at : at + 1] in ("{", "["):
                return at
        return len(self.text)

    def _end(self, at: int) -> int | None:
        try:
            return _DECODER.raw_decode(self.text, at)[1]
        except (ValueError, RecursionError):
            return None


def _wrapped(text: str, at: int) -> int | None:
    """Where the list of rows begins in an object such as ``{"tasks": [...]}``; None without such a list."""
    at = _skip(text, at + 1)
    while text[at : at + 1] == '"':
        try:
            name, at = _DECODER.raw_decode(text, at)
            at = _skip(text, at)
            if text[at : at + 1] != ":":
                return None
            at = _skip(text, at + 1)
            if name in _WRAPPERS and text[at : at + 1] == "[":
                return at
            if name in ("prompt", "messages"):  # it is a row itself
                return None
            at = _skip(text, _DECODER.raw_decode(text, at)[1])
        except (ValueError, RecursionError):
            return None
        if text[at : at + 1] != ",":
            return None
        at = _skip(text, at + 1)
    return None


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, value in pairs:
        if name in seen:
            raise ValueError(f"the key {show(name)} is given twice; keep one of them")
        seen[name] = value
    return seen


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no value; leave the field out, or write it as text in quotes")


def _whole(text: str) -> int:
    if len(text) > 300:
        raise ValueError(f"the number {text[:20]}... has {len(text)} digits; write it as text in quotes")
    return int(text)


_LENIENT = json.JSONDecoder(parse_int=len)
_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=Written, parse_int=_whole, parse_constant=_constant)
