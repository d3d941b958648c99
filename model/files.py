"""Atomic file writes (written under a temporary name, flushed, renamed) and digests. No torch."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LEFT = ".tmp"  # a leading dot and this suffix: temporary files of a killed process


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to ``path``, for a file or a folder; renamed to ``path`` when the block succeeds.

    A reader sees the old one or the new one. An existing folder is moved aside first and then deleted: a kill
    in between leaves none, never half of one.
    """
    path = path.resolve() if path.is_symlink() else path
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_LEFT}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        sync(temporary)
        if temporary.is_dir() and path.exists():
            old = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old{_LEFT}")
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        sync(path.parent)
    finally:
        _remove(temporary)


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` as UTF-8 to ``path`` atomically; lone surrogates are kept as escapes. Returns ``path``."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    return path


def file_digest(path: Path) -> str:
    """SHA-256 of the file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Delete temporary files of killed processes for ``name`` in ``folder`` and below. Only for its owner."""
    for path in list(folder.rglob(f".{name}{_LEFT}")):
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's files and names, to disk."""
    for inner in path.iterdir() if path.is_dir() and path.suffix == _LEFT else ():
        sync(inner)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
