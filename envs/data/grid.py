"""Tables of text: CSV with any usual separator, TSV, and rows of objects, as one header and rows of cells."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.data.problems import Problems, show
from envs.data.scalars import scalar_text

_SEPARATORS = (",", ";", "\t")
_SAMPLE = 20  # records from which the separator is inferred
_LONGEST = 2**31 - 1  # characters of a field; csv's own limit is 131072
_UNNAMED = re.compile(r"unnamed: ?\d+", re.IGNORECASE)  # pandas' name for a column without one
Line = tuple[str, list[str]]  # where, cells


@dataclass(frozen=True, slots=True)
class Grid:
    """A header and the rows below it, each as wide as the header. ``where`` is the header's line."""

    where: str
    header: list[str]
    rows: list[Line]


def read_csv(
    text: str, problems: Problems, suffix: str = ".csv", clean: Callable[[str], str] = str.strip
) -> Grid | None:
    """The table of ``text``; None without one. Ragged rows are reported and left out.

    Empty unnamed columns at the right (trailing commas) and the unnamed first column with pandas' row index
    are dropped; an unnamed first column of names is called ``name``. ``clean`` is applied to each cell.
    """
    first, _, rest = text.partition("\n")
    told = re.fullmatch(r"\"?sep=(.)\"?", first.strip(" \r"))  # how Excel states the separator
    skipped = int(bool(told))
    body = rest if told else text
    separator = told[1] if told else "\t" if suffix == ".tsv" else _separator(body)
    records = _records(body, separator, skipped, problems)
    lines = [(where, [clean(cell) for cell in row], row) for where, row in records]
    lines = [line for line in lines if any(line[1])]
    if not lines:
        if not problems:
            problems.add("line 1", "the file is empty; write a header and rows below it")
        return None
    where, header = lines[0][0], [_label(cell, clean) for cell in lines[0][2]]
    rows = [(place, row) for place, row, _ in lines[1:]]
    while header and not header[-1]:
        header.pop()
    return _with_index(Grid(where, header, _even(header, rows, separator, problems)), problems)


def grid_of(
    rows: Iterable[tuple[str, Any]], problems: Problems, clean: Callable[[str], str] = str.strip
) -> Grid | None:
    """Objects as a table: their keys are the columns, in order of first use; null is an empty cell."""
    header: dict[str, None] = {}
    found: list[tuple[str, dict[str, str]]] = []
    for where, row in rows:
        if not isinstance(row, dict):
            problems.add(where, f"not an object but {type(row).__name__}; write {{column: value, ...}}")
            continue
        cells = {}
        for name, value in row.items():
            text, fault = scalar_text(value, empty=True)
            if fault:
                problems.add(where, f"{name} = {show(value)}: {fault}")
            cells[_label(name, clean)] = clean(text)
        header |= dict.fromkeys(cells)
        found.append((where, cells))
    if not found:
        if not problems:
            problems.add("", "there are no rows; write one object for each row")
        return None
    names = [name for name in header if not re.fullmatch(r"__index_level_\d+__", name)]
    grid = Grid(found[0][0], names, [(where, [cells.get(name, "") for name in names]) for where, cells in found])
    return _with_index(grid, problems)


def read_parquet(path: Path, problems: Problems) -> list[tuple[str, dict[str, Any]]] | None:
    """``("row 3", {...})`` of every row; None, and a problem, if it is not a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        problems.add("", "is a folder; name one file in it" if path.is_dir() else "no such file")
        return None
    try:
        table = pq.read_table(path)
        if len(set(table.column_names)) < table.num_columns:
            problems.add("", "two columns have the same name; rename one")
            return None
        rows = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError, KeyError) as fault:
        problems.add("", f"not a Parquet file that can be read ({str(fault)[:200]}); write it again")
        return None
    if not rows:
        problems.add("", "the file has no rows")
    return [(f"row {number}", row) for number, row in enumerate(rows, 1)]


def _label(name: str, clean: Callable[[str], str]) -> str:
    """A column's name; punctuation alone (``%``, ``#``) is a valid name, though not a valid value."""
    return clean(name) or " ".join(name.split()).replace("|", "/")


def _separator(text: str) -> str:
    """The separator with most columns in the header; among equals the one that fits most rows."""

    def merit(separator: str) -> tuple[int, int]:
        sample = [row for _, row in zip(range(_SAMPLE), _lenient(text, separator), strict=False) if any(row)]
        width = len(sample[0]) if sample else 1
        return (width, sum(len(row) == width for row in sample)) if width > 1 else (1, 0)

    return max(_SEPARATORS, key=merit)


def _lenient(text: str, separator: str) -> Iterable[list[str]]:
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:
            continue


def _records(text: str, separator: str, skipped: int, problems: Problems) -> Iterable[tuple[str, list[str]]]:
    """Records with the line on which each begins. Fields may have any length."""
    limit = csv.field_size_limit(_LONGEST)
    lines = (line + "\n" for line in text.split("\n"))
    reader = csv.reader(lines, delimiter=separator, strict=True)
    found = []
    try:
        while True:
            where = f"line {reader.line_num + 1 + skipped}"
            try:
                found.append((where, next(reader)))
            except StopIteration:
                return found
            except csv.Error as fault:
                problems.add(
                    where, f"not a CSV file ({_said(fault)}); put cells that hold quotes in quotes, and double these"
                )
    finally:
        csv.field_size_limit(limit)


def _said(fault: csv.Error) -> str:
    return "a quote that opens here is never closed" if "unexpected end of data" in str(fault) else str(fault)


def _even(header: list[str], rows: list[Line], separator: str, problems: Problems) -> list[Line]:
    even = []
    for where, row in rows:
        cells = row[: len(header)]
        if len(row) < len(header) or any(row[len(header) :]):
            held = {",": "a comma", ";": "a semicolon", "\t": "a tab"}.get(separator, repr(separator))
            problems.add(
                where,
                f"{len(row)} cells where the header has {len(header)}; add or remove cells, and put values that hold"
                f" {held} in double quotes",
            )
            continue
        even.append((where, cells))
    return even


def _with_index(grid: Grid, problems: Problems) -> Grid:
    """Without pandas' row index, and with a name for every column that has values."""
    header, rows = list(grid.header), grid.rows
    if header and (not header[0] or _UNNAMED.fullmatch(header[0])):
        cells = [row[0] for _, row in rows]
        if _counts(cells) if len(header) <= 2 else _numbers(cells):
            return _with_index(Grid(grid.where, header[1:], [(where, row[1:]) for where, row in rows]), problems)
        header[0] = "name"
    keep = [at for at, name in enumerate(header) if name or any(row[at] for _, row in rows)]
    for at in keep:
        if not header[at]:
            problems.add(grid.where, f"no header: column {at + 1} has no name; name every column")
    header = [header[at] for at in keep]
    folded: dict[str, str] = {}
    for name in header:
        key = "".join(name.casefold().split())
        if name and key in folded:
            again = "" if name == folded[key] else f" (as {name!r}; case and blanks do not count)"
            problems.add(grid.where, f"column {folded[key]!r} appears twice{again}; give each column its own name")
        folded.setdefault(key, name)
    return Grid(grid.where, header, [(where, [row[at] for at in keep]) for where, row in rows])


def _counts(cells: list[str]) -> bool:
    """Whether ``cells`` count the rows from 0 or 1."""
    return cells in ([str(number) for number in range(first, first + len(cells))] for first in (0, 1))


def _numbers(cells: list[str]) -> bool:
    """Whether ``cells`` are a row index after dropping or sorting: distinct whole numbers."""
    return len(set(cells)) == len(cells) and all(re.fullmatch(r"\d+", cell) for cell in cells)
