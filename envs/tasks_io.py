"""Tasks as rows: JSONL and Parquet files, and data sets of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from envs.base import Task

_SUFFIXES = (".jsonl", ".parquet")


def load_tasks(spec: str, split: str) -> list[Task]:
    """Tasks of ``split`` from a ``.jsonl`` or ``.parquet`` file, or from the hub data set named ``spec``.

    A row needs ``prompt`` and ``gold`` (an object or its JSON, with ``kind``); other columns may be absent. Rows of a
    file without a ``split`` belong to the one asked for. Raises ValueError naming file, line and column.
    """
    path = Path(spec)
    if path.suffix not in _SUFFIXES:
        return [_task(row, f"{spec}[{split}]: row {i}", split) for i, row in enumerate(_hub_rows(spec, split), 1)]
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    rows = _jsonl_rows(path) if path.suffix == ".jsonl" else _parquet_rows(path)
    tasks = [_task(row, where, split) for where, row in rows]
    chosen = [task for task in tasks if task.split == split]
    if not chosen:
        there = sorted({task.split for task in tasks})
        raise ValueError(f"{path}: no task of split {split!r}; the file has {len(tasks)} tasks of splits {there}")
    return chosen


def save_tasks(tasks: Iterable[Task], path: str | Path) -> None:
    """Write ``tasks`` to a ``.jsonl`` or ``.parquet`` file (folders are made); ValueError for another suffix."""
    path = Path(path)
    if path.suffix not in _SUFFIXES:
        raise ValueError(f"{path}: tasks are saved as .jsonl or .parquet, not {path.suffix or 'without a suffix'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [task.to_row() for task in tasks]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def _jsonl_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    with path.open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, 1):
            if line.strip():
                try:
                    yield f"{path}: line {number}", json.loads(line)
                except ValueError as fault:
                    raise ValueError(f"{path}: line {number}: not JSON ({fault}); write one object a line") from fault


def _parquet_rows(path: Path) -> Iterable[tuple[str, dict[str, Any]]]:
    import pyarrow.parquet as pq

    for number, row in enumerate(pq.read_table(path).to_pylist(), 1):
        yield f"{path}: row {number}", row


def _hub_rows(spec: str, split: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    try:
        return load_dataset(spec, split=split)  # type: ignore[return-value]
    except Exception as fault:  # the library raises many kinds; all mean that these rows cannot be had
        raise ValueError(
            f"tasks {spec!r}, split {split!r}: neither a .jsonl or .parquet file nor a data set that can be loaded"
            f" ({type(fault).__name__}: {fault})"
        ) from fault


def _task(row: Any, where: str, split: str) -> Task:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: not an object but {type(row).__name__}")
    for column in ("prompt", "gold"):
        if row.get(column) in (None, ""):
            raise ValueError(f"{where}: missing column {column!r}; columns here: {sorted(row)}")
    try:
        return Task.from_row({**row, "split": row.get("split") or split})
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise ValueError(f"{where}: a column cannot be read ({type(fault).__name__}: {fault})") from fault
