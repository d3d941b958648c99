"""Read JSON objects from untrusted files: limits size and depth, refuses repeated keys and bad numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MOST_BYTES = 32 * 2**20


def read_json(file: Path, most: int = MOST_BYTES, *, finite: bool = True) -> dict[str, Any]:
    """The object in ``file`` of at most ``most`` bytes; FileNotFoundError and ValueError name the file.

    ``finite``: refuse NaN and infinity, which Python writes but JSON does not have.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} is not there: {file.parent} is no policy and no Hugging Face checkpoint")
    if not file.is_file():
        raise ValueError(f"{file} cannot be read: it is no regular file")
    size = file.stat().st_size
    if size > most:
        raise ValueError(f"{file} cannot be read: it has {size:,} bytes, at most {most:,} are read as JSON")
    try:
        tree = parse_json(file.read_text(encoding="utf-8"), finite=finite)
    except ValueError as error:  # not JSON, or not text
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{file} must hold an object")
    return tree


def parse_json(text: str, *, finite: bool = True) -> Any:
    """Parse ``text`` as JSON. ValueError if it is not: also for NaN, repeated keys, and endless nesting."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant if finite else float)
    except RecursionError:
        raise ValueError("it is nested deeper than Python reads") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return tree


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
