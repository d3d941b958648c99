"""A sweep's file and its cells: what differs is kept exactly, mistakes are named, shared work is shared."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import tiny_config

from parl.config.load import to_yaml
from parl.errors import ConfigError, UserError
from parl.sweep.cells import cells, cold_starts, differences, folder_of, trials
from parl.sweep.file import Sweep, read_sweep

ARMS = """arms:
  swarm: {}
  serial_agent: {rollouts.swarm: false, rollouts.budget.direct_calls: 1}
  cold_start: {policy: cold_start}
  cold_start_no_spawn: {policy: cold_start_no_spawn}
"""
GRID = "grid: {sft.seed: [1, 2], seed: [1, 2]}\n"


@pytest.fixture
def write(tmp_path: Path):
    """Write a sweep's file beside a tiny base, and read it."""
    (tmp_path / "base.yaml").write_text(to_yaml(tiny_config(tmp_path / "runs")))

    def _write(text: str, head: str = "name: mine\nbase: base.yaml\n") -> Sweep:
        file = tmp_path / "sweep.yaml"
        file.write_text(head + text)
        return read_sweep(file)

    return _write


def test_every_arm_that_trains_has_a_cell_at_every_point_of_the_grid(write):
    found = cells(write(GRID + ARMS), {})
    assert [cell.id for cell in found if cell.arm == "swarm"] == [
        f"swarm-sft.seed{start}-seed{seed}" for start in (1, 2) for seed in (1, 2)
    ]
    serial = [cell for cell in found if cell.arm == "serial_agent"]
    assert len(serial) == 4
    assert {(cell.config.rollouts.swarm, cell.config.rollouts.budget.direct_calls) for cell in serial} == {(False, 1)}
    assert [(cell.config.sft.seed, cell.config.seed) for cell in serial][-1] == (2, 2)
    assert not any(cell.config.baseline for cell in found)


def test_an_untrained_policy_is_evaluated_once_for_each_cold_start(write):
    found = cells(write(GRID + ARMS), {})
    for arm in ("cold_start", "cold_start_no_spawn"):
        assert [cell.id for cell in found if cell.arm == arm] == [f"{arm}-sft.seed1", f"{arm}-sft.seed2"]
        assert not any(cell.trains for cell in found if cell.arm == arm)


def test_a_key_that_changes_episodes_is_kept_for_untrained_policies(write):
    found = cells(write("grid: {seed: [1, 2], rollouts.budget.subagents: [4, 8]}\n" + ARMS), {})
    assert [cell.id for cell in found if cell.arm == "cold_start"] == [
        "cold_start-rollouts.budget.subagents4",
        "cold_start-rollouts.budget.subagents8",
    ]


def test_cells_of_one_cold_start_share_it_and_it_is_made_once(write):
    found = cells(write(GRID + ARMS), {})
    starts = cold_starts(found)
    assert len(starts) == 2 == len({cell.cold for cell in found})
    folder = starts[0].config.root / "cold_start" / starts[0].cold
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"")
    assert [cell.cold for cell in cold_starts(found)] == [cell.cold for cell in starts[1:]]


def test_runs_lie_in_folders_of_their_own_below_the_sweep_and_dry_looks_write_nothing(write, tmp_path: Path):
    sweep = write(GRID + ARMS)
    found = cells(sweep, {})
    folders = [cell.config.run_dir for cell in found]
    assert len(set(folders)) == len(found) and {folder.parent for folder in folders} == {folder_of(sweep)}
    assert {cell.config.root for cell in found} == {tmp_path / "runs"}
    assert not (tmp_path / "runs").exists()


def test_values_are_taken_as_the_file_has_them(write):
    sweep = write("set: {optimizer.lr: 1e-4, envs.config.widths: [2, 3], trainer.keep_best: null}\narms: {a: {}}\n")
    config = cells(sweep, {})[0].config
    assert (config.optimizer.lr, config.trainer.keep_best) == (1e-4, None)
    assert config.envs.config.model_dump()["widths"] == (2, 3)


def test_the_chosen_trial_is_the_arms_first_run(write):
    choose = "choose: {grid: {optimizer.lr: [1e-4, 3e-4]}, arms: [swarm]}\n"
    sweep = write(GRID + ARMS + choose)
    tried = trials(sweep)
    assert [cell.id for cell in tried] == [f"trial-swarm-sft.seed1-seed1-optimizer.lr{lr}" for lr in ("1e-4", "3e-4")]
    assert {cell.config.eval.split for cell in tried} == {"val"}
    found = [cell for cell in cells(sweep, {"swarm": {"optimizer.lr": "3e-4"}}) if cell.arm == "swarm"]
    assert {cell.config.optimizer.lr for cell in found} == {3e-4}
    assert found[0].config.run_dir == tried[1].config.run_dir and found[0].config.eval.split == "test"
    assert found[1].config.run_dir.name == "swarm-sft.seed1-seed2"
    untuned = [cell for cell in cells(sweep, {"swarm": {"optimizer.lr": "3e-4"}}) if cell.arm == "serial_agent"]
    assert {cell.config.optimizer.lr for cell in untuned} == {5e-4}


def test_differences_hold_what_differs_and_nothing_else(write):
    found = cells(write("grid: {seed: [1, 2]}\narms: {a: {}, b: {rollouts.swarm: false}}\n"), {})
    shown = differences(found)
    assert shown["b-seed2"] == {"seed": 2, "rollouts.swarm": False}
    assert all(set(values) == {"seed", "rollouts.swarm"} for values in shown.values())


def test_a_cells_key_changes_with_its_results_alone(write):
    one = cells(write("set: {trainer.steps: 4}\narms: {a: {}}\n"), {})[0].key
    assert cells(write("set: {trainer.steps: 4, trainer.ranks: 1}\narms: {a: {}}\n"), {})[0].key == one
    assert cells(write("set: {trainer.steps: 5}\narms: {a: {}}\n"), {})[0].key != one
    assert cells(write("set: {trainer.steps: 4}\nevaluate: {tasks: 9}\narms: {a: {}}\n"), {})[0].key != one


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arms: {}\n", "arms"),
        ("arms: {a: {}}\ngird: {seed: [1]}\n", "unknown key gird; did you mean grid?"),
        ("arms: {a: {}}\ngrid: {seed: [1, 1]}\n", "seed needs at least one value, and each once"),
        ("arms: {a: {}}\ngrid: {seed: []}\n", "seed needs at least one value"),
        ("arms: {a: {}}\nreference: b\n", "reference = b is no arm; there are: a"),
        ("arms: {a: {policy: best}}\n", "arms.a.policy"),
        ("arms: {a: {}}\nset: {eval.split: val}\n", "eval.split cannot be set in a sweep: set it in `evaluate`"),
        ("arms: {a: {name: x}}\n", "name cannot be set in a sweep"),
        ("arms: {'a b': {}}\n", "an arm's name is made of"),
        ("arms: {a: {policy: cold_start}}\nchoose: {arms: [a]}\n", "a is no arm that trains"),
        ("arms: {a: {}}\ngrid: {seed: [1]}\nchoose: {grid: {seed: [1]}}\n", "seed is in the grid and in choose.grid"),
        ("arms: {a: {}}\nevaluate: {tasks: no}\n", "evaluate.tasks"),
    ],
)
def test_a_mistake_in_the_file_is_named(write, text: str, said: str):
    with pytest.raises(UserError) as refused:
        write(text)
    assert said in str(refused.value)


def test_a_mistake_in_a_cell_names_the_arm_and_the_nearest_key(write):
    with pytest.raises(ConfigError, match=r"arm b: .*trainer\.stepz.*did you mean trainer\.steps"):
        cells(write("arms: {a: {}, b: {trainer.stepz: 3}}\n"), {})


def test_names_that_meet_after_cleaning_are_refused(write):
    with pytest.raises(UserError, match="two cells would be called a-tracking"):
        cells(write("grid: {tracking.project: ['a b', 'a/b']}\narms: {a: {}}\n"), {})
