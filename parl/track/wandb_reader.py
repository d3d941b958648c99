"""Reads offline W&B runs: the history rows of every ``run-*.wandb`` file below a folder.

A ``.wandb`` file is a LevelDB log: a 7-byte header, then blocks of 32 KiB of chunks
``crc32 (4 bytes), length (2), type (1), data``. A record is one FULL chunk, or FIRST, MIDDLE..., LAST. A
truncated tail is ignored.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAGIC = b":W&B"
_FILE_HEADER = 7
_BLOCK = 32 * 1024
_CHUNK = struct.Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def wandb_files(run_dir: Path, run_id: str | None = None) -> list[Path]:
    """All offline run files below ``run_dir``, oldest first; only those of ``run_id`` if it is given."""
    files = Path(run_dir).rglob(f"run-{run_id or '*'}.wandb")
    return sorted((file for file in files if not file.is_symlink()), key=lambda file: (file.parent.name, file.name))


def read_history(run_dir: Path, run_id: str | None = None) -> list[dict[str, Any]]:
    """The history rows (one per ``run.log``) of all offline files below ``run_dir``, in the order written."""
    records = (record for file in wandb_files(run_dir, run_id) for record in _parsed(file))
    return [_row(record.history.item) for record in records if record.WhichOneof("record_type") == "history"]


def is_complete(run_dir: Path, run_id: str) -> bool:
    """Whether the newest file of ``run_id`` has a finished run's end."""
    files = wandb_files(run_dir, run_id)
    return bool(files) and any(record.WhichOneof("record_type") == "exit" for record in _parsed(files[-1]))


def _parsed(file: Path) -> Iterator[Any]:
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2

    for data in read_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            record.ParseFromString(data)
        except DecodeError:  # a damaged record at the end of a killed run's file
            return
        yield record


def _row(items: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for item in items:
        *parents, name = item.nested_key or [item.key]
        node = row
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = json.loads(item.value_json) if item.value_json else None
    return row


def read_records(data: bytes) -> Iterator[bytes]:
    """The raw records of one ``.wandb`` file's bytes; stops at the first incomplete or damaged chunk."""
    if data[: len(MAGIC)] != MAGIC:
        return
    position, pending = _FILE_HEADER, b""
    while True:
        room = _BLOCK - position % _BLOCK
        if room < _CHUNK.size:  # too small for a chunk's header: padding
            position += room
            continue
        if position + _CHUNK.size > len(data):
            return
        _, length, kind = _CHUNK.unpack_from(data, position)
        start = position + _CHUNK.size
        if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or start + length > len(data) or _CHUNK.size + length > room:
            return
        pending = (b"" if kind in (_FULL, _FIRST) else pending) + data[start : start + length]
        if kind in (_FULL, _LAST):
            yield pending
            pending = b""
        position = start + length
