"""Bad tables and task files are reported before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
from tiny import tiny_config

from envs.world.environment import WorldEnvironment
from envs.world.tasks import distinct_tasks
from parl.cold_start.shipped import Recipe, cold_start_folder
from parl.collect.tasks import check_tasks, data_notes, run_tasks
from parl.config.schema import Config
from parl.errors import UserError

STARTERS = Path(__file__).parents[3] / "configs" / "starters"


def test_a_generated_world_needs_nothing(tmp_path: Path):
    config = tiny_config(tmp_path)
    check_tasks(config)
    assert [task.key for task in run_tasks(config).take(3, 2)] == [run_tasks(config).take(i, 1)[0].key for i in (3, 4)]
    held_out = run_tasks(config).held_out()
    assert len({task.key for task in held_out}) == len(held_out) == config.eval.tasks


def test_a_bad_table_is_a_mistake_with_a_fix(tmp_path: Path):
    table = tmp_path / "table.csv"
    table.write_text("name,mass\nKarona,1\nKarona,2\n")
    world = {"source": str(table), "widths": (2, 2)}
    with pytest.raises(UserError, match="Karona"):
        check_tasks(tiny_config(tmp_path, envs={"config": world}))


def test_a_missing_task_file_is_a_mistake_with_a_fix(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        check_tasks(tiny_config(tmp_path, envs={"tasks": str(tmp_path / "absent.jsonl")}))


def own(tmp_path: Path, *rows: dict, **changes: Any) -> Config:
    (tmp_path / "tasks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = tiny_config(tmp_path, envs={"tasks": str(tmp_path / "tasks.jsonl")}, **changes)
    return with_vocabulary(config)


def with_vocabulary(config: Config) -> Config:
    """``config`` with a tokenizer where its cold start would be: to train one takes seconds."""
    cold_start_folder(Recipe.of(config)).mkdir(parents=True, exist_ok=True)
    copyfile(next(STARTERS.glob("*/tokenizer.json")), cold_start_folder(Recipe.of(config)) / "tokenizer.json")
    return config


def row(prompt: str, **fields: Any) -> dict:
    return {"prompt": prompt, "answer": "42", **fields}


def test_a_small_table_has_the_distinct_tasks_that_it_has(tmp_path: Path):
    (tmp_path / "table.csv").write_text("name,age\nRome,1\nParis,2\nOslo,3\n")
    config = tiny_config(tmp_path, envs={"config": {"source": tmp_path / "table.csv"}}, eval={"tasks": 160})
    held_out = run_tasks(config).held_out()
    assert 50 < len(held_out) < 160 and len({task.key for task in held_out}) == len(held_out)
    fewer = tiny_config(tmp_path, envs={"config": {"source": tmp_path / "table.csv"}}, eval={"tasks": 20})
    assert run_tasks(fewer).held_out() == held_out[:20]
    assert any(
        f"{len(held_out)} distinct tasks" in note for note in data_notes(config, run_tasks(with_vocabulary(config)))
    )


def test_distinct_tasks_are_those_of_the_stream_in_its_order(tmp_path: Path):
    config = tiny_config(tmp_path)
    stream = WorldEnvironment(config.envs.config).task_stream("test", config.eval.seed)
    first = [stream[index] for index in range(30)]
    wanted = list({task.key: task for task in first}.values())
    assert distinct_tasks(stream, 30)[: len(wanted)] == wanted and len(distinct_tasks(stream, 30)) == 30


def test_prompts_that_do_not_fit_are_left_out_of_training_and_evaluation(tmp_path: Path):
    config = own(tmp_path, row("short"), row("long " * 3000), row("brief"))
    assert {task.prompt for task in run_tasks(config).take(0, 6)} == {"short", "brief"}
    assert [task.prompt for task in run_tasks(config).held_out()] == ["short", "brief"]
    notes = " ".join(data_notes(config, run_tasks(config)))
    assert "1 of 3 prompts of split train" in notes and "line 2 (" in notes and "1024" in notes and "left out" in notes
    with pytest.raises(UserError, match=r"2 of 2 prompts.*lines 1 .*, 2 .*nothing is left"):
        check_tasks(own(tmp_path, row("long " * 3000), row("longer " * 3000)))


def test_the_context_that_rollouts_allow_counts_where_it_is_less(tmp_path: Path):
    rollouts = {"context": {"orchestrator_tokens": 300}}
    assert run_tasks(own(tmp_path, row("x"), rollouts=rollouts)).context.limit == 300
    with pytest.raises(UserError, match=r"rollouts\.context\.orchestrator_tokens = 300"):
        check_tasks(own(tmp_path, row("word " * 200), rollouts=rollouts))


def test_what_a_user_should_know_is_said_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    check_tasks(own(tmp_path, row("one"), row("one"), rollouts={"tasks_per_step": 4}, eval={"tasks": 9}))
    shown = capsys.readouterr()
    assert shown.out == ""
    for part in ("line 2", "tasks_per_step = 4", "eval.tasks = 9", "model.init"):
        assert part in shown.err


def test_a_family_to_be_measured_that_no_task_has_is_a_mistake(tmp_path: Path):
    def measured(*names: str) -> dict:
        return {"rewards": {"saturation": {"families": names}}}

    check_tasks(tiny_config(tmp_path, **measured("wide", "deep")))
    with pytest.raises(UserError, match=r"saturation\.families: no task is of the family deeep; there are: .*deep"):
        check_tasks(tiny_config(tmp_path, **measured("wide", "deeep")))
    check_tasks(own(tmp_path, row("one", family="mine"), **measured("mine")))
    with pytest.raises(UserError, match=r"of the family deep; there are: mine"):
        check_tasks(own(tmp_path, row("one", family="mine"), **measured("deep")))


def test_a_split_without_rows_says_what_there_is(tmp_path: Path):
    with pytest.raises(UserError, match=r"no task of split 'test'.*2 of train"):
        check_tasks(own(tmp_path, row("one", split="train"), row("two", split="train")))
