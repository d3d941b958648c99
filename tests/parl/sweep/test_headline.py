"""The headline's data: the frozen test is checked, the scripted plan is the best one, rows have what readers expect."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_config

from benchmarks import headline
from benchmarks.headline import ARMS, check_frozen, frozen, row, scripted, tasks_hash
from model.tokenizer.tokenizer import Tokenizer
from parl.collect.tasks import run_tasks
from parl.config.family import chat_format
from parl.config.load import to_yaml
from parl.errors import UserError
from parl.sweep.cells import Cell, cells
from parl.sweep.file import read_sweep

KEYS = {
    *("policy", "group", "tasks", "success", "success_low", "success_high", "item_f1", "critical_steps"),
    *("path_tokens", "makespan_s", "total_tokens", "spawn_rate", "direct_parallel_rate"),
}


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cell]:
    """The first cell of a sweep with the headline's arms, with other settings of the world if given."""
    monkeypatch.chdir(tmp_path)

    def _first(**world: Any) -> Cell:
        calls = {"budget": {"direct_calls": 32}}
        world = {"entities": 120, "widths": (2, 4), **world}
        config = tiny_config(Path("runs"), envs={"config": world}, rollouts=calls)
        Path("base.yaml").write_text(to_yaml(config))
        policies = {"cold_start": "{policy: cold_start}", "cold_start_no_spawn": "{policy: cold_start_no_spawn}"}
        arms = "".join(f"  {arm}: {policies.get(arm, '{}')}\n" for arm in ARMS)
        Path("sweep.yaml").write_text(f"name: head\nbase: base.yaml\nevaluate: {{tasks: 12}}\narms:\n{arms}")
        return cells(read_sweep(Path("sweep.yaml")), {})[0]

    return _first


def test_the_hash_is_that_of_the_sorted_keys():
    assert tasks_hash(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest() == tasks_hash(["a", "b"])


def test_a_test_that_is_not_the_frozen_one_is_refused_with_what_changed(first, tmp_path: Path):
    cell, file = first(), tmp_path / "frozen_test.json"
    now = frozen(cell, run_tasks(cell.config).held_out())
    with pytest.raises(UserError, match="no test is frozen yet"):
        check_frozen(file, now)
    file.write_text(json.dumps(now))
    check_frozen(file, now)
    easier = first(distractors=0)  # the same questions over easier pages
    with pytest.raises(UserError, match=r"envs\.config\.distractors was"):
        check_frozen(file, frozen(easier, run_tasks(easier.config).held_out()))
    other = first(seed=5)
    with pytest.raises(UserError) as refused:
        check_frozen(file, frozen(other, run_tasks(other.config).held_out()))
    said = str(refused.value)
    assert "envs.config.seed was" in said and "tasks gone: " in said and "tasks new: " in said
    fewer = run_tasks(cell.config).held_out()[1:]
    with pytest.raises(UserError, match="no setting differs, so the code makes other tasks; tasks gone: 1 "):
        check_frozen(file, frozen(cell, fewer))


def test_a_test_is_frozen_once(first, tmp_path: Path, capsys):
    first()
    headline.headline(Path("sweep.yaml"), tmp_path / "data", freeze=True)
    assert "froze 12 tasks" in capsys.readouterr().out
    with pytest.raises(UserError, match="a test is frozen once"):
        headline.headline(Path("sweep.yaml"), tmp_path / "data", freeze=True)
    with pytest.raises(UserError, match="not done: swarm, serial_agent"):
        headline.headline(Path("sweep.yaml"), tmp_path / "data")


def test_the_scripted_plan_solves_every_task_and_is_as_short_as_the_oracles(first, tokenizer: Tokenizer):
    cell = first()
    own = run_tasks(cell.config)
    tasks = own.held_out()
    played = scripted(cell, own.environment, tasks, chat_format(cell.config.model, cell.config.rollouts, tokenizer))
    assert {key: episode.metrics["success"] for key, episode in played.items()} == {task.key: 1 for task in tasks}
    for task in tasks:
        assert task.oracle is not None
        least = min(filter(None, (task.oracle.serial_steps, task.oracle.parallel_steps, task.oracle.direct_steps)))
        assert played[task.key].metrics["critical_steps"] <= least


def test_a_plan_whose_agent_reads_more_than_the_policy_can_is_not_solved(first, tokenizer: Tokenizer):
    cell = first()
    own, limit = run_tasks(cell.config), 420
    shape = cell.config.model.model_copy(update={"max_position_embeddings": limit})
    bounded = dataclasses.replace(cell, config=cell.config.model_copy(update={"model": shape}))
    chat = chat_format(cell.config.model, cell.config.rollouts, tokenizer)
    played = scripted(bounded, own.environment, own.held_out(), chat)
    solved = {key for key, episode in played.items() if episode.metrics["success"]}
    assert 0 < len(solved) < len(played)
    assert all(len(trace.tokens) <= limit for key in solved for trace in played[key].traces)


def test_a_row_has_all_columns_and_null_for_what_is_absent():
    interval = {"value": 0.5, "low": 0.25, "high": 0.75}
    found = dict.fromkeys(KEYS) | {"arm": "swarm", "group": "all", "tasks": 4, "success": interval}
    made = row(found | {"critical_steps": {"value": 5.0, "low": 4.0, "high": 6.0}})
    assert set(made) == KEYS and made["policy"] == "swarm" and made["path_tokens"] is None
    assert (made["success"], made["success_low"], made["success_high"]) == (0.5, 0.25, 0.75)
    assert made["critical_steps"] == 5.0
