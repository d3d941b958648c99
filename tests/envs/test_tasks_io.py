"""Tasks travel as rows of JSONL, Parquet and hub data sets."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from world_helpers import only

from envs.tasks_io import load_tasks, save_tasks
from envs.world.environment import WorldEnvironment


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_saved_tasks_come_back_equal(tmp_path, suffix):
    environment = WorldEnvironment(only("wide", "chain", "list", "swap", "single_fact", aliases=0.3))
    tasks = environment.tasks("val")[:40]
    path = tmp_path / "deep" / f"tasks.{suffix}"
    save_tasks([*tasks, *environment.tasks("test")[:3]], path)
    assert load_tasks(str(path), "val") == tasks


def test_a_users_row_needs_only_prompt_and_gold(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "Who?", "gold": {"kind": "exact", "answers": ["me"]}}) + "\n\n")
    (task,) = load_tasks(str(path), "val")
    assert (task.split, task.family, task.gold.answers, task.oracle) == ("val", "user", ("me",), None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", r"line 2: not JSON"),
        ("[1]", r"line 2: not an object but list"),
        ('{"gold": {"kind": "exact"}}', r"line 2: missing column 'prompt'"),
        ('{"prompt": "x"}', r"line 2: missing column 'gold'"),
        ('{"prompt": "x", "gold": "{"}', r"line 2: gold = .*must be an object or its JSON"),
        ('{"prompt": "x", "gold": {}}', r"line 2: missing column 'gold'"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_column(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "x", "gold": {"kind": "exact", "answers": ["y"]}}\n' + line + "\n")
    with pytest.raises(ValueError, match=message) as error:
        load_tasks(str(path), "train")
    assert str(path) in str(error.value)


def test_missing_files_splits_and_suffixes_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_tasks(str(tmp_path / "none.jsonl"), "train")
    path = tmp_path / "t.jsonl"
    save_tasks(WorldEnvironment(only("wide")).tasks("val")[:2], path)
    with pytest.raises(ValueError, match=r"no task of split 'test'; the file has 2 tasks of splits \['val'\]"):
        load_tasks(str(path), "test")
    with pytest.raises(ValueError, match=r"\.jsonl or \.parquet"):
        save_tasks([], tmp_path / "t.csv")


def test_hub_data_sets_are_loaded_lazily_and_their_failures_explained(monkeypatch):
    rows = [{"prompt": "Who?", "gold": json.dumps({"kind": "exact", "answers": ["me"]})}]

    def load_dataset(name, split):
        if name != "someone/tasks":
            raise FileNotFoundError("nothing there")
        return rows

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert load_tasks("someone/tasks", "val")[0].gold.answers == ("me",)
    with pytest.raises(ValueError, match=r"'someone/else', split 'val'.*FileNotFoundError: nothing there"):
        load_tasks("someone/else", "val")
