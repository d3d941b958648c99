"""A user's table as a world: a row is an entity, the first column its name, the others its attributes."""

from __future__ import annotations

import re
import string
import unicodedata
from pathlib import Path

from envs.data.grid import Grid, grid_of, read_csv, read_parquet
from envs.data.json_rows import json_rows
from envs.data.problems import Problems, TooMany
from envs.data.text import read_text
from envs.world.knowledge import Entity, Knowledge
from envs.world.lexicon import SPLITS, split_of

ENOUGH = 16  # rows that every split needs for separate splits
FILES = (".csv", ".tsv", ".parquet", ".json", ".jsonl", ".ndjson")
_NUMBER = re.compile(r"[-+]?(?=.*\d)[\d.,%]+")
_YEAR = re.compile(r"[12]\d{3}")
_ITEM = re.compile(r", \d+\. ")  # separator of the items in a question's list
_DROPPED = frozenset(string.punctuation + "–—… ")
_ARTICLES = {"a", "an", "the"}  # dropped by scoring: an answer of nothing else is empty


def table_knowledge(path: Path, split: str) -> Knowledge:
    """The entities of ``split`` in the table at ``path``.

    Rows go to splits by a stable hash of their name. If a split would get fewer than 16 rows, ALL SPLITS
    SHARE ALL ROWS, and held-out scores measure the skill of looking up, not unseen names. An empty cell is an
    unknown fact. Raises DataError (a ValueError) with file, line, mistake and fix, for all mistakes at once.
    """
    entities = read_table(path)
    chosen = entities if smallest_split(entities) < ENOUGH else [e for e in entities if split_of(e.name) == split]
    return Knowledge(split=split, seed=0, entities={e.name: e for e in chosen})


def smallest_split(entities: list[Entity]) -> int:
    """Rows of the smallest split."""
    owners = [split_of(entity.name) for entity in entities]
    return min(owners.count(split) for split in SPLITS)


def read_table(path: Path) -> list[Entity]:
    """The rows of a table as entities, in file order.

    CSV (also with ``;`` or tabs), TSV, Parquet, JSON and JSON Lines. Raises DataError with all mistakes.
    """
    path = Path(path)
    problems = Problems(str(path))
    entities: list[Entity] = []
    try:
        grid = _grid(path, problems)
        if grid is not None:
            _check_header(grid, problems)
            entities = _entities(grid, problems)
    except TooMany:
        pass
    problems.check()
    return entities


def _grid(path: Path, problems: Problems) -> Grid | None:
    suffix = path.suffix.lower()
    if not path.exists():
        problems.add("", "no such file; set envs.config.source to a table")
        return None
    if suffix == ".parquet" and path.is_file():
        rows = read_parquet(path, problems)
        return grid_of(rows, problems, _clean) if rows else None
    text = read_text(path, problems)
    if text is None:
        return None
    if suffix in (".json", ".jsonl", ".ndjson"):
        return grid_of(json_rows(text, problems), problems, _clean)
    if suffix not in FILES and suffix != ".txt":
        problems.add("", f"is no kind of table that is known: give it one of the suffixes {', '.join(FILES)}")
        return None
    return read_csv(text, problems, suffix, _clean)


def _check_header(grid: Grid, problems: Problems) -> None:
    header, where = grid.header, grid.where
    numeric = [cell for cell in header if _NUMBER.fullmatch(cell) and not _YEAR.fullmatch(cell)]
    if numeric or (header and _NUMBER.fullmatch(header[0])):
        problems.add(where, f"no header (it has a numeric cell: {header}); name every column in line 1")
    elif len(header) < 2:
        problems.add(where, f"only one column {header}; add at least one attribute, separated by commas")
    for label in header[1:]:
        if "".join(label.casefold().split()) == "name":
            cure = "answers call the first column 'name'; rename this one, or put it first"
            problems.add(where, f"column {label!r} is not the first, but {cure}")
    if not grid.rows and not problems:
        problems.add(where, "a header but no rows; add one row for each entity")


def _entities(grid: Grid, problems: Problems) -> list[Entity]:
    seen: dict[str, str] = {}
    entities: list[Entity] = []
    label = grid.header[0] if grid.header else ""
    for where, row in grid.rows:
        name = row[0]
        if not name:
            problems.add(where, f"the first column ({label!r}) is empty; every row needs a name there")
            continue
        if (key := unicodedata.normalize("NFC", name).casefold()) in seen:
            first = seen[key]
            problems.add(where, f"duplicate key {name!r} (first in {first}); keep one of them or rename it")
            continue
        if not any(c.isalnum() for c in name):
            problems.add(where, f"{label} = {name!r}: a name needs a letter or a digit, or it cannot be searched for")
        if _ITEM.search(name):
            problems.add(where, f"{label} = {name!r}: reads as two items of a numbered list; remove the number")
        seen[key] = where
        values = {column: value for column, value in zip(grid.header[1:], row[1:], strict=True) if value}
        for column, value in values.items():
            if set(value.casefold().split()) <= _ARTICLES:
                problems.add(
                    where, f"{column} = {value!r}: scoring drops articles, so no answer matches; add a word to it"
                )
        entities.append(Entity(name=name, kind="row", values=values))
    if entities and not any(entity.values for entity in entities):
        problems.add("", "no row has a value; fill at least one cell beside the names")
    return entities


def _clean(cell: str) -> str:
    """One line, single spaces, no pipe: pages are read by lines and answers are tables with pipes.

    A cell of punctuation alone (``-``, ``?``) is empty: scoring drops punctuation.
    """
    text = " ".join(cell.split()).replace("|", "/")
    return text if set(text) - _DROPPED else ""
