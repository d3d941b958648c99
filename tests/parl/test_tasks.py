"""Bad tables and task files are told before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_config

from parl.errors import UserError
from parl.tasks import TrainTasks, check_tasks, held_out_tasks


def test_a_generated_world_needs_nothing(tmp_path: Path):
    config = tiny_config(tmp_path)
    check_tasks(config)
    assert [task.key for task in TrainTasks(config).take(3, 2)] == [
        TrainTasks(config).take(i, 1)[0].key for i in (3, 4)
    ]
    held_out = held_out_tasks(config)
    assert len({task.key for task in held_out}) == len(held_out) == config.eval.tasks


def test_a_bad_table_is_a_mistake_with_a_fix(tmp_path: Path):
    table = tmp_path / "table.csv"
    table.write_text("name,mass\nKarona,1\nKarona,2\n")
    world = {"source": str(table), "widths": (2, 2)}
    with pytest.raises(UserError, match="Karona"):
        check_tasks(tiny_config(tmp_path, envs={"world": world}))


def test_a_missing_task_file_is_a_mistake_with_a_fix(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        check_tasks(tiny_config(tmp_path, envs={"tasks": str(tmp_path / "absent.jsonl")}))
