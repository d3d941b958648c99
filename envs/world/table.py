"""A user's CSV table as a world: a row is an entity, the first column its name, the others its attributes."""

from __future__ import annotations

import csv
import re
from pathlib import Path

from envs.world.knowledge import Entity, Knowledge
from envs.world.lexicon import SPLITS, split_of

_ENOUGH = 16  # rows that every split needs before the splits are kept apart


def table_knowledge(path: Path, split: str) -> Knowledge:
    """The entities of ``split`` in the table at ``path``.

    Rows go to splits by a stable hash of their name. Where that would leave a split with fewer than 16 rows, the
    table is too small to be divided: then ALL SPLITS SHARE ALL ROWS, and held-out scores measure the skill of looking
    up, not unseen names. An empty cell is a fact that the world does not know. Raises ValueError that names file,
    line, what is wrong and how to mend it.
    """
    entities = read_table(path)
    parts = {name: {e.name: e for e in entities if split_of(e.name) == name} for name in SPLITS}
    apart = min(len(part) for part in parts.values()) >= _ENOUGH
    chosen = parts[split] if apart else {e.name: e for e in entities}
    return Knowledge(split=split, seed=0, entities=chosen)


def read_table(path: Path) -> list[Entity]:
    """The rows of a CSV file as entities, in file order; ValueError (file, line, fault, cure) when it is malformed."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; set envs.world.source to a CSV table")
    try:
        with path.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True)
            lines = [(reader.line_num, [_clean(cell) for cell in row]) for row in reader]
    except (csv.Error, UnicodeDecodeError) as fault:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({fault}); export it again as CSV, UTF-8") from fault
    lines = [(number, row) for number, row in lines if any(row)]
    if not lines:
        raise ValueError(f"{path}: line 1: the file is empty; write a header (name, attribute, ...) and rows below it")
    header_line, header = lines[0]
    _check_header(path, header_line, header)
    if len(lines) == 1:
        raise ValueError(f"{path}: line {header_line}: a header but no rows; add one row for each entity")
    return _entities(path, header, lines[1:])


def _check_header(path: Path, line: int, header: list[str]) -> None:
    where = f"{path}: line {line}:"
    if any(not cell or re.fullmatch(r"[-+]?[\d.,%]+", cell) for cell in header):
        raise ValueError(f"{where} no header (it has an empty or numeric cell: {header}); name every column in line 1")
    if len(header) < 2:
        raise ValueError(f"{where} only one column {header}; add at least one attribute, separated by commas")
    folded = [cell.casefold() for cell in header]
    twice = next((cell for cell in folded if folded.count(cell) > 1), None)
    if twice is not None:
        raise ValueError(f"{where} column {twice!r} appears twice; give each column its own name")


def _entities(path: Path, header: list[str], lines: list[tuple[int, list[str]]]) -> list[Entity]:
    seen: dict[str, int] = {}
    entities: list[Entity] = []
    for number, row in lines:
        where = f"{path}: line {number}:"
        if len(row) != len(header):
            raise ValueError(
                f"{where} {len(row)} cells where the header has {len(header)}; add or remove cells, and put values"
                " that hold a comma in double quotes"
            )
        name = row[0]
        if not name:
            raise ValueError(f"{where} the first column ({header[0]!r}) is empty; every row needs a name there")
        if name.casefold() in seen:
            first = seen[name.casefold()]
            raise ValueError(f"{where} duplicate key {name!r} (first in line {first}); keep one of them or rename it")
        seen[name.casefold()] = number
        values = {label: value for label, value in zip(header[1:], row[1:], strict=True) if value}
        entities.append(Entity(name=name, kind="row", values=values))
    if not any(entity.values for entity in entities):
        raise ValueError(f"{path}: no row has a value; fill at least one cell beside the names")
    return entities


def _clean(cell: str) -> str:
    """One line, single spaces, no pipe: pages are read by lines and answers are tables with pipes."""
    return " ".join(cell.split()).replace("|", "/")
