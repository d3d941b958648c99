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
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from envs.base import Gold

_FENCE = re.compile(r"```markdown(.*?)```", re.DOTALL)
_RULE = set("|-: \t\r")
_MIN_PIPES = 4  # WideSearch: fewer pipes are no table


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemF1:
    """Scores of one table, each in [0, 1]; ``success`` means that every cell is right and nothing is extra."""

    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0
    row_f1: float = 0.0
    success: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table from an answer: normalised column names, stripped cells; None for an unreadable row."""

    columns: list[str]
    rows: list[list[str] | None]


def item_f1(answer: str, gold: Gold) -> ItemF1:
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
    items, full = _matches(answered, wanted, keys, aliases)
    return _scores(items, full, len(answered), len(wanted), len(columns))


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
) -> tuple[int, int]:
    """(tp_item, tp_row); every gold row is matched at most once, by the first answer row that names it."""
    items = full = 0
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
        right = sum([a == b for a, b in zip(cells, target, strict=True)])
        items += right
        full += right == len(target)
    return items, full


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
