"""Collects the mistakes of one source of data, to report them all at once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any, Protocol

NOTHING: Any = object()  # no value to show
MOST_SHOWN = 20
_STOP = 1000  # problems after which reading stops


class DataError(ValueError):
    """Unusable data; the text names the file and, for each mistake, line, field, value and fix."""


class TooMany(Exception):
    """Raised to stop reading after too many mistakes."""


class Say(Protocol):
    """Reports a mistake of one row."""

    def __call__(self, field: str, text: str, value: Any = ...) -> None:
        """``text`` says what is wrong with ``field`` and how to fix it; ``value`` is shown if given."""


class Problems:
    """Mistakes of the source ``name``, in order of discovery, and notes."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.notes: list[str] = []
        self._found: list[tuple[str, str]] = []

    def __bool__(self) -> bool:
        return bool(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def add(self, where: str, text: str) -> None:
        """Add a mistake. ``where`` is the line or row, empty for the whole file."""
        self._found.append((where, text))
        if len(self._found) >= _STOP:
            raise TooMany

    def check(self) -> None:
        """Raise :class:`DataError` if there are mistakes: the first 20 and the number of the others.

        A mistake shared by many rows (a misnamed column) is reported once if it would hide others.
        """
        if not self._found:
            return
        told = [f"{where}: {text}" if where else text for where, text in self._found]
        if len(told) == 1:
            raise DataError(f"{self.name}: {told[0]}")
        counts = Counter(text for _, text in self._found)
        if len({text for _, text in self._found[:MOST_SHOWN]}) < len(counts):
            first = dict(reversed([(text, where) for where, text in self._found]))
            told = [_shared(first[text], text, count) for text, count in counts.items()]
        lines = [f"  - {problem}" for problem in told[:MOST_SHOWN]]
        more = len(told) - MOST_SHOWN
        if more > 0:
            lines.append(f"  and {'at least ' * (len(self._found) >= _STOP)}{more} more")
        raise DataError(f"{self.name}: {len(self._found)} problems\n" + "\n".join(lines))


def _shared(where: str, text: str, count: int) -> str:
    """One mistake with the first of its places and the number of the others."""
    others = f" (and {count - 1} more like it)" if count > 1 else ""
    return f"{where}{others}: {text}" if where else text


def show(value: Any, most: int = 80) -> str:
    """``value`` in one short line of ASCII-safe JSON, for a message."""
    if written := getattr(value, "written", None):  # a number as written in the file
        return str(written)
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = repr(type(value))
    text = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
    return text if len(text) <= most else text[: most - 3] + "..."
