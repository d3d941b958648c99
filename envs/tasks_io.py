"""Tasks as rows: JSON Lines, JSON, CSV, TSV and Parquet files, data sets of the hub, and Python functions.

The form of a row is in ``envs.data.task_row``. All mistakes of a source are reported at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.base import Task
from envs.data.called import called_rows, is_called
from envs.data.grid import read_csv, read_parquet
from envs.data.json_rows import json_rows
from envs.data.problems import Problems, TooMany, show
from envs.data.task_row import task_of
from envs.data.text import read_text

FILES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_NOT_READ = (
    *(".gz", ".bz2", ".xz", ".zst", ".zip", ".xlsx", ".xls", ".txt", ".yaml", ".yml", ".xml", ".html", ".md"),
    *(".arrow", ".feather", ".pkl", ".pickle", ".npy", ".npz", ".db", ".sqlite", ".py"),
)
_SAVED = (".jsonl", ".parquet")
_LONG_ANSWER = 200  # characters
_LONGEST_NAME = 200  # characters; file systems may refuse longer ones
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
Check = Callable[[Task], str | None]


@dataclass(slots=True)
class TaskSource:
    """Tasks of all splits in a file or data set, each with its line or row, and notes."""

    name: str
    tasks: list[Task] = field(default_factory=list)
    where: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_tasks(spec: str, split: str, check: Check | None = None) -> list[Task]:
    """Tasks of ``split`` from a file (``FILES``), a function, or the hub's data set ``spec``.

    Checks all rows, those of other splits too (:func:`read_tasks`). Raises DataError (a ValueError) with
    file, line, field, value and fix of every mistake.
    """
    source = read_tasks(spec, split, check)
    chosen = [task for task in source.tasks if task.split == split]
    if not chosen:
        there = sorted({task.split for task in source.tasks})
        problems = Problems(source.name)
        problems.add("", f"no task of split {split!r}; the file has {len(source.tasks)} tasks of splits {there}")
        problems.check()
    return chosen


def read_tasks(spec: str, split: str, check: Check | None = None) -> TaskSource:
    """The tasks of all rows; those without a split belong to ``split``. DataError with all mistakes.

    ``check`` returns what is wrong with a well-formed task, or None. A row that repeats an earlier one of its
    split is left out, with a note.
    """
    problems = Problems(spec if names_file(spec) else f"{spec}[{split}]")
    source = TaskSource(problems.name)
    try:
        rows, as_text = _rows(spec, split, problems)
        _read(rows, split, problems, source, as_text=as_text, check=check)
    except TooMany:
        pass
    problems.check()
    return source


def save_tasks(tasks: Iterable[Task], path: str | Path) -> None:
    """Write ``tasks`` to a ``.jsonl`` or ``.parquet`` file (folders are made); ValueError for another suffix."""
    path = Path(path)
    if path.suffix not in _SAVED:
        raise ValueError(f"{path}: tasks are saved as .jsonl or .parquet, not {path.suffix or 'without a suffix'}")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [task.to_row() for task in tasks]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)


def file_problem(spec: str) -> str | None:
    """Why ``spec`` can be neither a task file nor the name of a data set or a function; None if it may be one."""
    path = Path(spec)
    if not spec.strip():
        return "is empty; name a file, or leave the key out for generated tasks"
    if names_file(spec):
        if is_there(path) and path.is_dir():
            return "is a folder; name one file in it"
        if not is_there(path):
            return "no such file"
        cure = "unpack an archive, save a sheet as CSV, or give the file the suffix that it should have"
        return None if path.suffix.lower() in FILES else f"is none of {', '.join(FILES)}; {cure}"
    if is_called(spec) or _HUB.fullmatch(spec):
        return None
    return f"neither a file ({', '.join(FILES)}), nor the name of a data set, nor package.module:function"


def is_there(path: Path) -> bool:
    """Whether ``path`` exists; False if the file system refuses the name."""
    try:
        return path.exists()
    except OSError:
        return False


def names_file(spec: str) -> bool:
    """Whether ``spec`` means a file rather than a data set of the hub."""
    if Path(spec).suffix.lower() in (*FILES, *_NOT_READ) or spec.startswith(("/", "./", "../", "~")):
        return True
    return bool(spec.strip()) and len(spec) < _LONGEST_NAME and Path(spec).exists()


def _rows(spec: str, split: str, problems: Problems) -> tuple[Iterable[tuple[str, Any]], bool]:
    """The rows with their places, and whether all values are texts."""
    if fault := file_problem(spec):
        problems.add("", fault)
        return [], False
    if is_called(spec) and not is_there(Path(spec)):
        return ((f"row {number}", row) for number, row in enumerate(called_rows(spec, split), 1)), False
    if not names_file(spec):
        return ((f"row {number}", row) for number, row in enumerate(_hub_rows(spec, split), 1)), False
    path = Path(spec)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return read_parquet(path, problems) or [], False
    text = read_text(path, problems)
    if text is None:
        return [], False
    if suffix in (".csv", ".tsv"):
        grid = read_csv(text, problems, suffix)
        if grid and not grid.rows and not problems:
            problems.add(grid.where, "a header but no rows; add one row for each task")
        return ((where, dict(zip(grid.header, row, strict=True))) for where, row in grid.rows) if grid else [], True
    return json_rows(text, problems), False


def _read(
    rows: Iterable[tuple[str, Any]],
    split: str,
    problems: Problems,
    source: TaskSource,
    *,
    as_text: bool,
    check: Check | None,
) -> None:
    first: dict[tuple[str, str], tuple[int, bool]] = {}  # (split, key) -> the row, and whether it had a key
    repeated: list[str] = []
    for where, row in rows:
        task = task_of(row, where, split, problems, as_text=as_text)
        if task is None:
            continue
        if check and (fault := check(task)):
            problems.add(where, fault)
            continue
        given = isinstance(row, dict) and bool(row.get("key"))
        known = first.get((task.split, task.key))
        if known is None:
            first[task.split, task.key] = len(source.tasks), given
        elif source.tasks[known[0]] == task:
            repeated.append(where)
            continue
        else:
            problems.add(where, f"key = {show(task.key)}: is the key of {source.where[known[0]]} too; keys must differ")
            continue
        source.tasks.append(task)
        source.where.append(where)
    if repeated:
        source.notes.append(f"rows that repeat an earlier one are left out: {_some(repeated)}")
    source.notes.extend(_doubtful(source))


def _doubtful(source: TaskSource) -> Iterable[str]:
    """Notes on well-formed tasks that are probably mistakes."""
    asked: dict[str, Task] = {}
    other, leaked, long = [], [], []
    for where, task in zip(source.where, source.tasks, strict=True):
        first = asked.setdefault(" ".join(task.prompt.split()), task)
        if first.gold != task.gold and first.split == task.split:
            other.append(where)
        elif first.split != task.split:
            leaked.append(where)
        if any(len(text) > _LONG_ANSWER or "\n" in text.strip() for text in task.gold.answers):
            long.append(where)
    if other:
        yield (
            f"rows that ask what an earlier one asks, with another gold: {_some(other)}; no answer is right for both"
        )
    if leaked:
        yield (f"rows that ask what a row of another split asks: {_some(leaked)}; held-out scores measure memory too")
    if long:
        yield (
            f"rows whose answer is long (over {_LONG_ANSWER} characters, or several lines): {_some(long)}; only the"
            " same words are right: give the final answer alone"
        )


def _some(places: list[str]) -> str:
    return ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")


def _hub_rows(spec: str, split: str) -> Iterable[dict[str, Any]]:
    from datasets import load_dataset

    try:
        return load_dataset(spec, split=split)  # type: ignore[return-value]
    except Exception as fault:  # the library raises many kinds; all mean that the rows are not available
        raise ValueError(
            f"tasks {spec!r}, split {split!r}: neither a file ({', '.join(FILES)}) nor a data set that can be loaded"
            f" ({type(fault).__name__}: {fault})"
        ) from fault
