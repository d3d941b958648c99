"""The hidden answer of a row: its form, and whether any answer can reach it."""

from __future__ import annotations

from typing import Any

from envs.base import Gold
from envs.data.fields import near
from envs.data.problems import Say, show
from envs.data.scalars import scalar_text

_FIELDS = ("kind", "columns", "unique_columns", "rows", "answers", "aliases", "data", "command")
_ASKED = ("function", "judge", "command", "none")  # scored by what `rewards` names, or by the session
_KINDS = ("table", "exact", *_ASKED)
_OTHER_KINDS = {"exact_match": "exact", "em": "exact", "string": "exact", "list": "exact", "item_f1": "table"}
_EXAMPLE = {
    "exact": '{"kind": "exact", "answers": ["Paris"]}',
    "table": '{"kind": "table", "columns": ["name", "age"], "rows": [["Rome", "12"]]}',
}


def gold_of(gold: dict[str, Any], say: Say, field: str = "gold") -> Gold | None:
    """The checked gold; None if it cannot be used, after reporting to ``say``."""
    for name in gold:
        if name not in _FIELDS:
            close = near(name, _FIELDS) or ("answers" if name in ("target", "value", "text", "solution") else None)
            hint = f"; did you mean {close}?" if close else f"; it has {', '.join(_FIELDS)}"
            say(f"{field}.{name}", f"unknown key (given {show(gold[name])}){hint}")
    kind = gold.get("kind")
    if kind not in _KINDS:
        close = _OTHER_KINDS.get(str(kind).casefold()) or near(str(kind), _KINDS)
        hint = f"; did you mean {close}?" if close else ""
        if kind is None:
            hint = f"; write {_EXAMPLE['table' if gold.get('rows') else 'exact']}"
        say(f"{field}.kind", f"must be one of {', '.join(_KINDS)}{hint}", kind)
        return None
    if kind in _ASKED:
        return _asked(kind, gold, say, field)
    _unused(gold, ("data", "command"), kind, say, field)
    aliases = _aliases(gold.get("aliases"), say, f"{field}.aliases")
    if kind == "exact":
        _unused(gold, ("columns", "unique_columns", "rows"), "exact", say, field)
        answers = _texts(gold.get("answers"), say, f"{field}.answers", _EXAMPLE["exact"])
        return Gold(kind="exact", answers=answers, aliases=aliases)
    _unused(gold, ("answers",), "table", say, field)
    columns = _texts(gold.get("columns"), say, f"{field}.columns", _EXAMPLE["table"])
    keys = gold.get("unique_columns")
    unique = _texts(keys, say, f"{field}.unique_columns", _EXAMPLE["table"]) if keys else ()
    rows = _rows(gold.get("rows"), columns, say, f"{field}.rows")
    _check_columns(columns, unique, say, field)
    _check_keys(columns, unique, rows, aliases, say, field)
    return Gold(kind="table", columns=columns, unique_columns=unique, rows=tuple(rows.values()), aliases=aliases)


def _asked(kind: str, gold: dict[str, Any], say: Say, field: str) -> Gold:
    """A gold that something else than the answer's text decides: accepted texts and data for whoever scores."""
    own = ("command",) if kind == "command" else ()
    without = [name for name in _FIELDS if name not in ("kind", "answers", "data", *own)]
    _unused(gold, tuple(without) if kind != "none" else tuple(_FIELDS[1:]), kind, say, field)
    answers = gold.get("answers")
    if kind == "judge" and not answers and not gold.get("data"):
        say(f"{field}.answers", 'is missing, so a judge has nothing to compare with; write "answers": ["Paris"]')
    texts = _texts(answers, say, f"{field}.answers", _EXAMPLE["exact"]) if answers else ()
    data = gold.get("data") or {}
    if not isinstance(data, dict):
        say(f"{field}.data", "must be an object", data)
        data = {}
    command = gold.get("command") or ()
    if command and not (isinstance(command, list | tuple) and all(isinstance(part, str) for part in command)):
        say(f"{field}.command", 'must be a list of the program and its arguments, e.g. ["python", "check.py"]', command)
        command = ()
    return Gold(kind=kind, answers=texts, data=data, command=tuple(command))


def _unused(gold: dict[str, Any], names: tuple[str, ...], kind: str, say: Say, field: str) -> None:
    for name in names:
        if gold.get(name):
            say(f"{field}.{name}", f"does not belong to kind {kind}; leave it out, or change the kind", gold[name])


def _texts(value: Any, say: Say, field: str, example: str) -> tuple[str, ...]:
    """A list of texts; a single value means a list of one."""
    values = value if isinstance(value, list | tuple) else [value]
    if value is None or not values:
        say(field, f"{'is missing' if value is None else 'is empty'}, so no answer can be right; write {example}")
        return ()
    texts = []
    for number, part in enumerate(values):
        at = f"{field}[{number}]" if isinstance(value, list | tuple) else field
        text, fault = scalar_text(part)
        if fault or not text.strip():
            say(at, f"{fault or 'is empty, which no answer can be; write its text or leave it out'}", part)
        else:
            texts.append(text)
    return tuple(texts)


def _rows(value: Any, columns: tuple[str, ...], say: Say, field: str) -> dict[int, tuple[str, ...]]:
    """Rows of as many cells as there are columns, by row number in the file."""
    if not isinstance(value, list | tuple) or not value:
        said = "is missing" if value is None else "is empty" if value in ([], ()) else f"{show(value)}: must be a list"
        say(field, f"{said}; write one list of cells for each row, {_EXAMPLE['table']}")
        return {}
    rows = {}
    for number, row in enumerate(value):
        at = f"{field}[{number}]"
        if not isinstance(row, list | tuple):
            say(at, "must be a list of cells in the order of columns", row)
            continue
        if columns and len(row) != len(columns):
            say(at, f"has {len(row)} cells where there are {len(columns)} columns", row)
            continue
        cells = []
        for name, cell in zip(columns or map(str, range(len(row))), row, strict=False):
            text, fault = scalar_text(cell)
            if fault:
                say(f"{at}.{name}", f"{fault.replace('not null', 'not null (write an empty text)')}", cell)
            elif "|" in text:
                say(f"{at}.{name}", "holds |, which ends a cell of an answer's table; write / or a comma", cell)
            cells.append(text)
        rows[number] = tuple(cells)
    return rows


def _check_columns(columns: tuple[str, ...], unique: tuple[str, ...], say: Say, field: str) -> None:
    for what, names in (("columns", columns), ("unique_columns", unique)):
        folded = [_column(name) for name in names]
        for number, name in enumerate(folded):
            if name in folded[:number]:
                say(f"{field}.{what}[{number}]", "is there twice (case and blanks do not count)", names[number])
            if "|" in name:
                say(f"{field}.{what}[{number}]", "holds |, which ends a cell of a table", names[number])
    there = {_column(name) for name in columns}
    for number, name in enumerate(unique if columns else ()):
        if _column(name) not in there:
            close = near(name, columns, 0.6)
            hint = f"; did you mean {close}?" if close else ""
            say(f"{field}.unique_columns[{number}]", f"is none of the columns {show(list(columns))}{hint}", name)


def _check_keys(
    columns: tuple[str, ...],
    unique: tuple[str, ...],
    rows: dict[int, tuple[str, ...]],
    aliases: dict[str, str],
    say: Say,
    field: str,
) -> None:
    """Rows are found by their key columns, which must be filled and distinct."""
    folded = [_column(name) for name in columns]
    keys = [folded.index(_column(name)) for name in unique or columns[:1] if _column(name) in folded]
    spelled = {_cell(alias): _cell(name) for alias, name in aliases.items()}
    seen: dict[tuple[str, ...], int] = {}
    for number, row in rows.items():
        cells = [_cell(row[at]) for at in keys]
        if not all(cells):
            say(f"{field}.rows[{number}]", f"its key column {show(columns[keys[cells.index('')]])} is empty", list(row))
            continue
        key = tuple(spelled.get(cell, cell) for cell in cells)
        if key in seen:
            names = ", ".join(columns[at] for at in keys)
            cure = "name the columns that tell rows apart in unique_columns, or remove one"
            say(f"{field}.rows[{number}]", f"has the key of rows[{seen[key]}] ({names}); {cure}", list(row))
        seen.setdefault(key, number)


def _aliases(value: Any, say: Say, field: str) -> dict[str, str]:
    if not value:
        return {}
    if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        value = dict(value)  # a map of Parquet
    if not isinstance(value, dict):
        say(field, "must be an object, other spelling -> the spelling in the gold", value)
        return {}
    aliases = {}
    for alias, name in value.items():
        if name is None:  # Parquet gives every row every key of the column
            continue
        text, fault = scalar_text(name)
        if isinstance(name, list | dict):
            fault = "must be one text, the spelling in the gold; the key is the other spelling"
        if fault or not text.strip() or not alias.strip():
            say(f"{field}.{alias}", f"{fault or 'a spelling is empty'}", name)
        aliases[alias] = text
    return aliases


def _column(name: str) -> str:
    return "".join(name.lower().split())


def _cell(text: str) -> str:
    return " ".join(text.casefold().split())
