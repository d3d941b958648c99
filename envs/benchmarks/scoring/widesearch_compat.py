"""WideSearch's official scores, number for number. See :mod:`envs.benchmarks.scoring.widesearch`.

Tables are read by pandas, whose rules (types of columns, quotes, missing values, unnamed columns) decide scores;
their cells then become the texts that pandas 2.3.1 writes, whichever pandas is installed. Any failure, of the
reader or of a metric, scores 0 as in the official script.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter, defaultdict
from typing import Any

from envs.benchmarks.scoring.widesearch import (
    Judge,
    Scores,
    Unavailable,
    column_name,
    f1,
    is_table_line,
    metric,
    preprocess,
    reply_lines,
)

Columns = dict[str, list[Any]]  # name -> cells


class Unscorable(Exception):
    """What makes the official script give up: the reply scores 0."""


class _Doubled:
    """A cell of a column that is there twice: pandas hands both to a metric, which few metrics survive."""

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, text: str) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        raise Unscorable("two columns of one name")

    __str__ = __eq__  # type: ignore[assignment]


def compat(evaluation: dict[str, Any], answer_csv: str, response: str, judge: Judge) -> Scores:
    """The official scores of ``response``; ``score`` may be 1 where the others are not, and F1 above 1."""
    try:
        return _compat(evaluation, answer_csv, response, judge)
    except Unavailable:
        raise
    except Exception:  # the official script catches everything: a reply that breaks it scores 0
        return Scores()


def _compat(evaluation: dict[str, Any], answer_csv: str, response: str, judge: Judge) -> Scores:
    required, unique = evaluation["required"], evaluation["unique_columns"]
    read = _named([(column_name(name), cells) for name, cells in _read(answer_csv, ",")])
    gold = {name: read[name] for name in required}
    lines = reply_lines(response)
    if lines is None:
        return Scores()
    columns = [(column_name(name), cells) for name, cells in _response_table(lines)]
    names = [name for name, _ in columns]
    if set(names) != set(required):
        renamed = judge.align(names, required)
        columns = [(renamed.get(name, name), cells) for name, cells in columns]
        if {name for name, _ in columns} != set(required):
            return Scores()
    answer = _distinct(_named(columns), unique)
    gold = _distinct(gold, unique)
    mapped = False
    for name in unique:
        if {"llm_judge", "exact_match"}.intersection((evaluation["eval_pipeline"].get(name) or {}).get("metric", [])):
            aligned = judge.align(answer[name], gold[name])
            answer[name] = [aligned.get(cell, cell) for cell in answer[name]]
            mapped = True
    for name, item in evaluation["eval_pipeline"].items():
        for step in item.get("preprocess", []):
            answer[name] = [preprocess(step, cell) for cell in answer[name]]
            gold[name] = [preprocess(step, cell) for cell in gold[name]]
    same = not mapped and _same(gold, answer)
    pairs = _pairs(gold, answer, unique)
    scored = _score_columns(evaluation, gold, answer, pairs, judge)
    return _totals(scored, same, len(pairs), _height(answer), _height(gold), len(required))


def _read(text: str, separator: str) -> list[tuple[str, list[str]]]:
    """(name, cells) of each column that pandas reads, cells as the texts that pandas 2.3.1 makes of them."""
    import pandas

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = pandas.read_csv(io.StringIO(text), sep=separator)
        written = pandas.read_csv(io.StringIO(text), sep=separator, dtype=str)
    # Read by position: a name may be there twice. A missing value becomes "nan", as str() writes it.
    columns = []
    for at, name in enumerate(frame.columns):
        cells, raw = ([str(cell) for cell in table.iloc[:, at].tolist()] for table in (frame, written))
        overflow = any(
            cell in ("inf", "-inf") and "inf" not in as_is.lower() for cell, as_is in zip(cells, raw, strict=True)
        )
        columns.append((name, raw if overflow else cells))  # 1e400 is no number to pandas 2, and infinite to 3
    return columns


def _response_table(lines: list[str]) -> list[tuple[str, list[str]]]:
    lines[0] = lines[0].replace(" ", "").lower()
    kept = [line.strip() for line in lines if is_table_line(line)]
    text = "\n".join("|".join(cell.strip() for cell in line.split("|")) for line in kept)
    return [column for column in _read(text, "|") if not column[0].startswith("Unnamed")]


def _named(columns: list[tuple[str, list[str]]]) -> Columns:
    times = Counter(name for name, _ in columns)
    return {name: cells if times[name] == 1 else [_Doubled() for _ in cells] for name, cells in columns}


def _height(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _rows(columns: Columns, names: list[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(columns[name] for name in names), strict=True))


def _distinct(columns: Columns, unique: list[str]) -> Columns:
    """The first row of each key."""
    if not unique:
        raise Unscorable("no key columns, which pandas does not take")
    first = {key: at for at, key in reversed(list(enumerate(_rows(columns, unique))))}
    kept = sorted(first.values())
    return {name: [cells[at] for at in kept] for name, cells in columns.items()}


def _same(gold: Columns, answer: Columns) -> bool:
    """Whether both tables hold the same rows, in any order, under the same header."""
    names = list(gold)
    return names == list(answer) and Counter(_rows(gold, names)) == Counter(_rows(answer, names))


def _pairs(gold: Columns, answer: Columns, unique: list[str]) -> list[tuple[int, int]]:
    """(gold row, answer row) of equal keys: every gold row with every answer row, as an inner join does."""
    for name in unique:
        kinds = {type(cell) for cell in answer[name]}
        if kinds and (kinds <= {int, float} or kinds == {bool}):
            raise Unscorable(f"the judge made all of {name} numbers, which pandas does not join with texts")
    at = defaultdict(list)
    for row, key in enumerate(_rows(answer, unique)):
        at[key].append(row)
    return [(row, other) for row, key in enumerate(_rows(gold, unique)) for other in at.get(key, ())]


def _score_columns(
    evaluation: dict[str, Any], gold: Columns, answer: Columns, pairs: list[tuple[int, int]], judge: Judge
) -> dict[str, list[Any]]:
    """Scores of the matched rows by column and metric. Two metrics of one column are two columns."""
    scored: dict[str, list[Any]] = {}
    for name in evaluation["required"]:
        if name in evaluation["unique_columns"]:
            scored[f"{name}_exact_match"] = [1.0] * len(pairs)
            continue
        item = evaluation["eval_pipeline"][name]
        criterion = item.get("criterion")
        given = [answer[name][other] for _, other in pairs]
        target = [gold[name][row] for row, _ in pairs]
        for rule in item.get("metric", []):
            if rule == "llm_judge":
                if any(isinstance(cell, _Doubled) for cell in (*given, *target)):
                    raise Unscorable("two columns of one name")
                cells = judge.cells(given, target, criterion) or [0] * len(pairs)
            elif pairs or rule == "date_near":
                cells = [metric(rule, a, b, criterion) for a, b in zip(given, target, strict=True)]
            else:
                raise Unscorable("no matched rows: pandas tries the metric on NaN, which only date_near survives")
            scored[f"{name}_{rule}"] = cells
    return scored


def _totals(scored: dict[str, list[Any]], same: bool, matched: int, answered: int, wanted: int, width: int) -> Scores:
    full = sum(min(cells[at] for cells in scored.values()) for at in range(matched))
    items = sum(sum(cells) for cells in scored.values())
    row = (full / answered if answered else 0.0, full / wanted if wanted else 0.0)
    item = (items / (answered * width) if answered else 0.0, items / (wanted * width) if wanted else 0.0)
    six = {"pr": row[0], "rr": row[1], "fr": f1(*row), "pi": item[0], "ri": item[1], "fi": f1(*item)}
    success = same or all(value == 1.0 for value in six.values())
    return Scores(score=float(success), **{name: float(value) for name, value in six.items()})
