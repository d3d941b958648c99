"""The reader of users' files: rows, or one message that names the file; never another exception."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.base import Gold, Task
from envs.data.problems import DataError, Problems, TooMany, show
from envs.tasks_io import load_tasks, read_tasks
from envs.world.table import read_table

PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
NAMES = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=2, max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=6), part, max_size=3)
)
GOLDS = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(["table", "exact", "other"]) | JSON,
        "columns": st.lists(st.sampled_from(["name", "age", "Name", ""]), max_size=3) | JSON,
        "unique_columns": st.lists(st.sampled_from(["name", "id"]), max_size=2) | JSON,
        "rows": st.lists(st.lists(SCALARS, max_size=3), max_size=3) | JSON,
        "answers": JSON,
        "aliases": JSON,
    },
)
ROWS = st.fixed_dictionaries(
    {},
    optional={
        "prompt": st.text(max_size=10) | JSON,
        "gold": GOLDS | JSON,
        "messages": JSON,
        "answer": JSON,
        "reward_model": JSON,
        "split": st.sampled_from(["train", "test", "dev"]) | JSON,
        "width": JSON,
        "oracle": JSON,
        "plan": JSON,
        "key": JSON,
        "family": JSON,
    },
)
LENIENT = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tasks_or_message(path: Path) -> list[Task]:
    try:
        return load_tasks(str(path), "test")
    except DataError as error:
        assert str(error).startswith(str(path)), error
        assert len(str(error).splitlines()) <= 22
        return []


@LENIENT
@given(rows=st.lists(ROWS | JSON, min_size=1, max_size=4), whole=st.booleans())
def test_any_json_gives_tasks_or_one_message(tmp_path: Path, rows: list, whole: bool):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(rows) if whole else "\n".join(map(json.dumps, rows)))
    for task in tasks_or_message(path):
        assert task.prompt.strip() and (task.gold.answers or task.gold.rows)
        assert all(isinstance(text, str) for row in (task.gold.answers, *task.gold.rows) for text in row)
        json.dumps(task.to_row(), ensure_ascii=False).encode()  # can be stored


@LENIENT
@given(data=st.binary(max_size=80), suffix=st.sampled_from(["jsonl", "json", "csv", "tsv", "parquet"]))
def test_any_bytes_give_a_message(tmp_path: Path, data: bytes, suffix: str):
    path = tmp_path / f"t.{suffix}"
    path.write_bytes(data)
    assert tasks_or_message(path) == []
    try:
        read_table(path)
    except DataError as error:
        assert str(error).startswith(str(path))


@LENIENT
@given(
    names=st.lists(NAMES, min_size=1, max_size=5, unique=True),
    cells=st.lists(st.lists(PLAIN, min_size=2, max_size=2), min_size=5, max_size=5),
    separator=st.sampled_from(",;\t"),
    end=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_a_table_is_read_as_csv_wrote_it(tmp_path: Path, names, cells, separator, end, encoding):
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(["name", "first thing", "other"])
    writer.writerows([name, *row] for name, row in zip(names, cells, strict=False))
    path = tmp_path / "t.csv"
    path.write_bytes(text.getvalue().encode(encoding))
    try:
        entities = read_table(path)
    except DataError as error:
        assert any(word in str(error) for word in ("articles", "no row has a value")), error
        return
    assert [entity.name for entity in entities] == names
    for entity, row in zip(entities, cells, strict=False):
        for label, cell in zip(("first thing", "other"), row, strict=True):
            wanted = " ".join(cell.split()).replace("|", "/")
            assert entity.values.get(label, wanted) == wanted


def test_all_mistakes_are_told_twenty_at_most():
    problems = Problems("file")
    problems.check()
    for number in range(21):
        problems.add(f"line {number}", "wrong")
    with pytest.raises(DataError, match="21 problems") as error:
        problems.check()
    assert "line 19" in str(error.value) and "line 20" not in str(error.value) and "and 1 more" in str(error.value)
    with pytest.raises(TooMany):
        for number in range(10_000):
            problems.add("", str(number))


def test_a_shown_value_is_one_short_line():
    assert show({"a": "x" * 500})[-3:] == "..." and len(show("x" * 500)) == 80
    assert show("a\nb\x1b") == '"a\\nb\\u001b"'


def test_a_check_of_the_callers_is_told_with_the_readers_own_mistakes(tmp_path: Path):
    path = tmp_path / "t.jsonl"
    rows = [{"prompt": "a", "answer": 1}, {"prompt": "", "answer": 2}, {"prompt": "c", "answer": 3}]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"(?s)3 problems.*line 1: no 1.*line 2: .*prompt.*line 3: no 3"):
        read_tasks(str(path), "test", lambda task: f"no {task.gold.answers[0]}")


def test_a_row_keeps_the_identity_that_it_had(tmp_path: Path):
    """Stored episodes identify their task by its key, a function of prompt and gold as written."""
    row = {"prompt": "Who?", "gold": {"kind": "exact", "answers": ["me"]}}
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(row))
    assert load_tasks(str(path), "test") == [Task.from_row(row)]
    assert load_tasks(str(path), "test")[0].gold == Gold(kind="exact", answers=("me",))
