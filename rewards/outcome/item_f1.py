"""WideSearch item-F1 of a table answer, without pandas and without a judge.

The rule (ByteDance-Seed/WideSearch, ``evaluation``): extract the table from the reply, normalise the header,
score 0 unless its columns are exactly the required ones, match rows on the key columns, and then

    tp_item = Σ matched rows (key cells, 1.0 each, + value cells that are equal)     tp_row = rows that are all right
    P = tp / (answer rows [x columns])    R = tp / (gold rows [x columns])    F1 = 2 P R / (P + R)

all in [0, 1]. Cells compare case-folded, stripped, with white space collapsed, after ``Gold.aliases`` (which
replace the official language-model alignment of keys).

Three differences from the official script, which is exploitable or depends on its CSV reader there. Rows that
name an entity again are wrong rows (officially they push recall above 1). A row with too many cells is a
wrong row (officially the table becomes unreadable). Quotes and blank cells are ordinary text (officially 0).

Two scores beside it count fewer cells, by the same formulas: ``values_f1`` those outside of the key columns, and
``found_f1`` those that do not stand in the question. A key cell stands there if its words do, in a row; another
column if all its cells do. Names that had to be searched for count. A row that matches no gold row counts as
wrong with as many cells as the richest gold row has. Where no cell would count, they are the item-F1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from envs.base import Gold

_FENCE = re.compile(r"```markdown(.*?)```", re.DOTALL)
_RULE = set("|-: \t\r")
_WORD = re.compile(r"\w+")
_MIN_PIPES = 4  # WideSearch: fewer pipes are no table


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemF1:
    """Scores of one table, each in [0, 1]; ``success`` means that every cell is right and nothing is extra."""

    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0
    row_f1: float = 0.0
    values_f1: float = 0.0
    found_f1: float = 0.0
    success: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table from an answer: normalised column names, stripped cells; None for an unreadable row."""

    columns: list[str]
    rows: list[list[str] | None]


def item_f1(answer: str, gold: Gold, question: str = "") -> ItemF1:
    """Score ``answer`` against the table of ``gold``; all zeros without a table with the right columns."""
    table = extract_table(answer)
    columns = [_column(name) for name in gold.columns]
    if table is None or sorted(table.columns) != sorted(columns):
        return ItemF1()
    keys = [columns.index(_column(name)) for name in gold.unique_columns or gold.columns[:1]]
    order = [table.columns.index(name) for name in columns]
    aliases = {normalise_cell(k): normalise_cell(v) for k, v in gold.aliases.items()}
    wanted = {}
    for row in gold.rows:
        cells = _cells(row, aliases)
        wanted.setdefault(tuple([cells[i] for i in keys]), cells)
    answered = _distinct([None if row is None else [row[i] for i in order] for row in table.rows], keys)
    pairs = _matches(answered, wanted, keys, aliases)
    items = sum(a == b for cells, target in pairs for a, b in zip(cells, target, strict=True))
    full = sum(cells == target for cells, target in pairs)
    values = [i for i in range(len(columns)) if i not in keys]
    found = _found(list(wanted.values()), keys, values, question)
    scores = _scores(items, full, len(answered), len(wanted), len(columns))
    return replace(
        scores,
        values_f1=_part(pairs, len(answered), list(wanted.values()), lambda row: values, scores.f1),
        found_f1=_part(pairs, len(answered), list(wanted.values()), found, scores.f1),
    )


def extract_table(answer: str) -> Table | None:
    """The table in the first ``markdown`` fence, else in the first run of lines starting with a pipe; None if none."""
    fence = _FENCE.search(answer)
    if fence:
        lines = fence.group(1).splitlines()
    elif answer.count("|") >= _MIN_PIPES:
        lines = _first_pipe_run(answer)
    else:
        return None
    lines = [line for line in lines if "|" in line and not _RULE.issuperset(line)]
    if not lines:
        return None
    header = [_column(name) for name in _split(lines[0])]
    named = [i for i, name in enumerate(header) if name]
    rows = [_row(_split(line), len(header), named) for line in lines[1:]]
    return Table(columns=[header[i] for i in named], rows=rows)


def normalise_cell(text: str) -> str:
    """Case-folded, stripped, runs of white space collapsed to one blank."""
    return " ".join(text.casefold().split())


def _column(name: str) -> str:
    return "".join(name.lower().split())


def _first_pipe_run(answer: str) -> list[str]:
    run: list[str] = []
    for line in answer[answer.index("|") : answer.rindex("|") + 1].splitlines():
        if line.lstrip().startswith("|"):
            run.append(line)
        elif run:
            break
    return run


def _split(line: str) -> list[str]:
    line = line.strip()
    return [cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")]


def _row(cells: list[str], width: int, named: list[int]) -> list[str] | None:
    if len(cells) > width:
        return None
    cells += [""] * (width - len(cells))
    return [cells[i] for i in named]


def _cells(row: list[str] | tuple[str, ...], aliases: dict[str, str]) -> list[str]:
    cells = [normalise_cell(cell) for cell in row]
    return [aliases.get(cell, cell) for cell in cells] if aliases else cells


def _distinct(rows: list[list[str] | None], keys: list[int]) -> list[list[str] | None]:
    """Rows without later ones that repeat a key exactly as written (dropped officially too)."""
    seen: set[tuple[str, ...]] = set()
    kept: list[list[str] | None] = []
    for row in rows:
        if row is not None:
            key = tuple([row[i] for i in keys])
            if key in seen:
                continue
            seen.add(key)
        kept.append(row)
    return kept


def _matches(
    rows: list[list[str] | None],
    wanted: dict[tuple[str, ...], list[str]],
    keys: list[int],
    aliases: dict[str, str],
) -> list[tuple[list[str], list[str]]]:
    """(answer row, gold row) of those that match; a gold row does at most once, with the first that names it."""
    pairs: list[tuple[list[str], list[str]]] = []
    used: set[tuple[str, ...]] = set()
    for row in rows:
        if row is None:
            continue
        cells = _cells(row, aliases)
        key = tuple([cells[i] for i in keys])
        target = wanted.get(key)
        if target is None or key in used:
            continue
        used.add(key)
        pairs.append((cells, target))
    return pairs


def _found(
    gold: list[list[str]], keys: list[int], values: list[int], question: str
) -> Callable[[list[str]], list[int]]:
    """The columns of a gold row that do not stand in ``question``."""
    asked = f" {' '.join(_WORD.findall(question.casefold()))} "

    def stands(cell: str) -> bool:
        own = " ".join(_WORD.findall(cell))
        return bool(own) and f" {own} " in asked

    sought = [i for i in values if not all(stands(row[i]) for row in gold)]
    return lambda row: [i for i in keys if not stands(row[i])] + sought


def _part(
    pairs: list[tuple[list[str], list[str]]],
    answered: int,
    gold: list[list[str]],
    columns: Callable[[list[str]], list[int]],
    whole: float,
) -> float:
    """F1 over the ``columns`` of each gold row; ``whole`` where no cell counts."""
    counts = [len(columns(row)) for row in gold]
    if not sum(counts):
        return whole
    right = sum(cells[i] == target[i] for cells, target in pairs for i in columns(target))
    given = sum(len(columns(target)) for _, target in pairs) + (answered - len(pairs)) * max(counts)
    return _f1(right / given, right / sum(counts)) if given else 0.0


def _scores(items: int, full: int, answered: int, wanted: int, width: int) -> ItemF1:
    if not answered or not wanted:
        return ItemF1()
    precision, recall = items / (answered * width), items / (wanted * width)
    return ItemF1(
        precision=precision,
        recall=recall,
        f1=_f1(precision, recall),
        row_f1=_f1(full / answered, full / wanted),
        success=full == answered == wanted,
    )


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 1e-9 else 0.0
