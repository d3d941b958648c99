"""Untrusted JSON documents of a file or folder: of bounded size, and only from there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 512 * 2**20  # of one document


def read_documents(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) of a .json or .jsonl file or of all in a folder; ValueError names file and line."""
    for file in sorted(path.rglob("*.json*")) if path.is_dir() else [path]:
        if not file.is_file():
            raise ValueError(f"{file}: no regular file")
        if file.suffix != ".jsonl":
            yield str(file), object_in(file, path if path.is_dir() else path.parent)
            continue
        inside(file, path if path.is_dir() else path.parent)
        with file.open("rb") as lines:  # as bytes: only newlines end a line
            for number, line in enumerate(iter(lambda: lines.readline(MOST_BYTES + 1), b""), 1):
                if line.strip():
                    yield f"{file}: line {number}", _object(line, f"{file}: line {number}")


def object_in(file: Path, folder: Path) -> dict[str, Any]:
    """The JSON object in ``file``, which must be below ``folder``. ValueError says what is wrong with it."""
    inside(file, folder)
    with file.open("rb") as given:
        return _object(given.read(MOST_BYTES + 1), str(file))


def inside(file: Path, folder: Path) -> None:
    """ValueError if ``file`` is, through a link or dots, outside of ``folder``."""
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{file} leads out of {folder}")


def _object(text: bytes, where: str) -> dict[str, Any]:
    if len(text) > MOST_BYTES:
        raise ValueError(f"{where}: more than {MOST_BYTES:,} bytes in one document")
    try:
        data = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{where}: not JSON ({fault})") from fault
    if not isinstance(data, dict):
        raise ValueError(f"{where}: not an object")
    return data
