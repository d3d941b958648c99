"""Untrusted JSON: refuses what Python's parser accepts and others do not, with its path.

Refused are numbers that are not finite or too long, repeated names in an object, lone surrogates, and nesting
that would exhaust the stack.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

MAX_DEPTH = 64
_MAX_DIGITS = 300  # of an integer, so that it fits a float
_TOO_LONG = 10**_MAX_DIGITS
_SHOWN = 80  # characters of a value in a message
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_HALF = "holds half of a surrogate pair, which is no character"
_SURROGATE = re.compile("[\ud800-\udfff]")


class BadRequest(ValueError):
    """The request cannot be served: ``field``, its path in the body, and the reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


@dataclass(frozen=True, slots=True)
class _Wrong:
    """Marks a refused value in the tree until its path is known."""

    reason: str


class _Twice(dict[str, Any]):
    """An object in which ``name`` is repeated."""

    name: str = ""


def parse_body(body: bytes) -> Any:
    """The tree of ``body``, UTF-8 with or without a byte-order mark. Raises BadRequest."""
    try:
        tree = _DECODER.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadRequest("body", f"is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise BadRequest("body", f"is nested more than {MAX_DEPTH} deep") from None
    except json.JSONDecodeError as error:
        raise BadRequest("body", f"is not JSON: {error}") from None
    if found := _problem(tree, 0, False):
        path = path_of(found[0])
        raise BadRequest(f"body{path}" if path[:1] in ("", "[") else path, found[1])
    return tree


def parse_text(text: str) -> Any:
    """JSON in a text of the body, such as a call's arguments. ValueError says what is wrong."""
    try:
        tree = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from None
    if found := _problem(tree, 0, True):
        raise ValueError(f"{path_of(found[0])} {found[1]}")
    return tree


def not_carried(tree: Any) -> str:
    """Why :func:`parse_text` would refuse the JSON of ``tree``; empty if it would not."""
    found = _problem(tree, 0, True)
    return f"{path_of(found[0])} {found[1]}" if found else ""


def short(value: Any) -> str:
    """``value`` for a message: one line, ASCII, truncated."""
    text = ascii(value if not isinstance(value, str) else value[:_SHOWN])
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def below(path: str, key: str | int) -> str:
    """The path of ``key`` in ``path``."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _NAME.fullmatch(key):
        return f"{path}[{short(key)}]"
    return f"{path}.{key}" if path else key


def path_of(keys: list[str | int]) -> str:
    """The path of ``keys``."""
    path = ""
    for key in keys:
        path = below(path, key)
    return path


def _problem(value: Any, depth: int, halves: bool) -> tuple[list[str | int], str] | None:
    """The first problem in ``value``: (keys to it, reason). ``halves``: allow lone surrogates."""
    if isinstance(value, str):
        return ([], _HALF) if not halves and _SURROGATE.search(value) else None
    if isinstance(value, _Wrong):
        return [], value.reason
    if isinstance(value, int) and abs(value) >= _TOO_LONG:
        return [], f"has more than {_MAX_DIGITS} digits"
    if not isinstance(value, dict | list):
        return None
    if depth >= MAX_DEPTH:
        return [], f"is nested more than {MAX_DEPTH} deep"
    if isinstance(value, _Twice):
        return [value.name], "is given twice"
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(key, str) and not halves and _SURROGATE.search(key):
            return [key], _HALF
        if found := _problem(item, depth + 1, halves):
            found[0].insert(0, key)
            return found
    return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) == len(pairs):
        return tree
    twice = _Twice(tree)
    seen: set[str] = set()
    twice.name = next(name for name, _ in pairs if name in seen or seen.add(name))
    return twice


def _whole(text: str) -> int | _Wrong:
    digits = len(text.removeprefix("-"))
    return int(text) if digits <= _MAX_DIGITS else _Wrong(f"has {digits} digits, {_MAX_DIGITS} are possible")


def _real(text: str) -> float | _Wrong:
    value = float(text)
    return value if math.isfinite(value) else _Wrong(f"{short(text)} is not a finite number")


def _constant(name: str) -> _Wrong:
    return _Wrong(f"{name} is not a finite number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole, parse_float=_real, parse_constant=_constant)
