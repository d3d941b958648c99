"""WideSearch scored fairly: the rules of ``rewards.outcome.item_f1``, with the metric of each column.

Cells are text as written: quotes, blanks and numbers keep their form. A row that names a gold row again, or has
too many cells, is a wrong row, so every score is in [0, 1]. A cell is right if all metrics of its column say so.
docs/benchmarks.md lists all differences from :mod:`envs.benchmarks.scoring.widesearch_compat`.
"""

from __future__ import annotations

import csv
import io
from typing import Any

from envs.benchmarks.scoring.widesearch import (
    METRICS,
    Judge,
    Scores,
    date_or_none,
    f1,
    is_table_line,
    metric,
    preprocess,
    reply_lines,
)

Row = list[str]
_JUDGED = {"llm_judge", "exact_match"}  # key columns with one of these are aligned by the judge


def sane(evaluation: dict[str, Any], answer_csv: str, response: str, judge: Judge) -> Scores:
    """Scores of ``response``, each in [0, 1]; ``score`` is 1 for a table with every cell right and no other row.

    ValueError for an evaluation or a gold table that no reply could satisfy.
    """
    required, keys = _columns(evaluation)
    rules = {_column(name): item for name, item in evaluation["eval_pipeline"].items()}
    wanted = _gold(answer_csv, required)
    answered = _answer(response, required, judge)
    if not answered or not wanted:
        return Scores()
    answered = _once(answered, keys)
    readable = [row for row in answered if row is not None]
    for at in keys:
        if _JUDGED.intersection(rules.get(required[at], {}).get("metric", ())):
            names = judge.align([row[at] for row in readable], [row[at] for row in wanted])
            for row in readable:
                row[at] = str(names.get(row[at], row[at]))
    for rows in (readable, wanted):
        for row in rows:
            row[:] = [_prepared(rules.get(name, {}), cell) for name, cell in zip(required, row, strict=True)]
    pairs = _pairs(readable, [row for row in _once(wanted, keys) if row is not None], keys)
    right = [_right(name, at, keys, rules.get(name, {}), pairs, judge) for at, name in enumerate(required)]
    full = sum(min(cells) for cells in zip(*right, strict=True))
    return _totals(full, sum(map(sum, right)), len(answered), len(_once(wanted, keys)), len(required))


def check(evaluation: dict[str, Any], answer_csv: str) -> None:
    """ValueError for an evaluation or a gold table that no reply could satisfy."""
    _gold(answer_csv, _columns(evaluation)[0])


def _columns(evaluation: dict[str, Any]) -> tuple[list[str], list[int]]:
    """The required columns, and which of them are the key."""
    required = [_column(name) for name in evaluation["required"]]
    keys = [_column(name) for name in evaluation["unique_columns"] or required[:1]]
    for name in keys:
        if name not in required:
            raise ValueError(f"evaluation.unique_columns: {name!r} is not in evaluation.required: {required}")
    return required, [required.index(name) for name in keys]


def _column(name: str) -> str:
    return "".join(name.lower().split())


def _text(cell: str) -> str:
    return " ".join(cell.casefold().split())


def _gold(answer_csv: str, required: list[str]) -> list[Row]:
    header, *rows = list(csv.reader(io.StringIO(answer_csv.removeprefix("\ufeff")))) or [[]]
    names = [_column(name) for name in header]
    for name in required:
        if name not in names:
            raise ValueError(f"answer_csv: no column {name!r}, which evaluation.required names; it has {names}")
    order = [names.index(name) for name in required]
    return [[row[at].strip() if at < len(row) else "" for at in order] for row in rows if any(row)]


def _answer(response: str, required: list[str], judge: Judge) -> list[Row | None]:
    """The reply's rows in the order of ``required``, None for a row with too many cells; empty without its columns."""
    lines = [line for line in reply_lines(response) or [] if is_table_line(line)]
    if not lines:
        return []
    header, *rows = [_split(line) for line in lines]
    names = [_column(name) for name in header]
    there = [name for name in names if name]
    if set(there) != set(required):
        renamed = judge.align(there, required)
        names = [name and _column(str(renamed.get(name, name))) for name in names]
    if sorted(filter(None, names)) != sorted(required):
        return []
    order = [names.index(name) for name in required]
    full = [None if len(row) > len(names) else [*row, *[""] * (len(names) - len(row))] for row in rows]
    return [row and [row[at] for at in order] for row in full]


def _split(line: str) -> Row:
    cells = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
    return [cell[1:-1] if len(cell) > 1 and cell[0] == cell[-1] == '"' else cell for cell in cells]


def _once(rows: list[Any], keys: list[int]) -> list[Row | None]:
    """Without rows that repeat a key as it is written."""
    seen: set[tuple[str, ...]] = set()
    kept = []
    for row in rows:
        key = row and tuple([row[at] for at in keys])
        if row is None or key not in seen:
            kept.append(row)
            seen.add(key)
    return kept


def _prepared(rule: dict[str, Any], cell: str) -> str:
    for step in rule.get("preprocess", ()):
        cell = preprocess(step, cell)
    return cell


def _pairs(answered: list[Row], wanted: list[Row], keys: list[int]) -> list[tuple[Row, Row]]:
    """(answer, gold) rows of one key; each gold row once, with the first answer that names it."""
    left = {tuple([_text(row[at]) for at in keys]): row for row in reversed(wanted)}
    found = [(row, left.pop(tuple([_text(row[at]) for at in keys]), None)) for row in answered]
    return [(row, gold) for row, gold in found if gold is not None]


def _right(
    name: str, at: int, keys: list[int], rule: dict[str, Any], pairs: list[tuple[Row, Row]], judge: Judge
) -> list[float]:
    """How right the cells of one column are, each in [0, 1]."""
    right = [1.0] * len(pairs)
    if at in keys or not pairs:
        return right
    given, target = [row[at] for row, _ in pairs], [gold[at] for _, gold in pairs]
    for one in rule.get("metric") or ["exact_match"]:
        if one == "llm_judge":
            judged = judge.cells(given, target, rule.get("criterion"))
            cells = [_same(a, b) for a, b in zip(given, target, strict=True)] if judged is None else judged
        else:
            cells = [_cell(one, a, b, rule.get("criterion")) for a, b in zip(given, target, strict=True)]
        right = [min(a, _unit(b)) for a, b in zip(right, cells, strict=True)]
    return right


def _unit(value: Any) -> float:
    return min(max(float(value), 0.0), 1.0) if isinstance(value, int | float) else 0.0


def _same(given: str, target: str) -> float:
    return float(_text(given) == _text(target))


def _cell(rule: str, given: str, target: str, criterion: Any) -> float:
    """A metric's word. Equal texts are right; blanks, and texts without a link or a date, are so only then."""
    if rule not in METRICS:
        raise ValueError(f"eval_pipeline: unknown metric {rule!r}; known: {', '.join(METRICS)}, llm_judge")
    if _same(given, target) or rule == "exact_match":
        return _same(given, target)
    if not given or not target or (rule == "url_match" and "http" not in given + target):
        return 0.0
    if rule == "date_near" and date_or_none(given) is None:
        return 0.0
    try:
        return metric(rule, given, target, criterion if isinstance(criterion, int | float) else 0.0)
    except (ValueError, TypeError, OverflowError):  # a broken link; dates with and without a time zone
        return 0.0


def _totals(full: float, items: float, answered: int, wanted: int, width: int) -> Scores:
    row = (full / answered, full / wanted)
    item = (items / (answered * width), items / (wanted * width))
    success = float(full == answered == wanted)
    return Scores(score=success, pr=row[0], rr=row[1], fr=f1(*row), pi=item[0], ri=item[1], fi=f1(*item))
