"""What a resumed run may change."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored import make_run
from tiny import tiny_config

from parl.config.load import load_config, to_yaml
from parl.config.runs import lengths
from parl.config.schema import Config
from parl.errors import UserError
from parl.evaluate.rescore import rescore
from parl.run.checkpoints import Checkpoints, State
from parl.run.resume import continue_run
from rollouts.store.store import EpisodeStore


def begun(folder: Path) -> tuple[Path, Config]:
    config = tiny_config(folder)
    file = folder / "config.yaml"
    file.write_text(to_yaml(config))
    return file, config


def test_the_same_configuration_continues_in_silence(tmp_path: Path, capsys):
    _, config = begun(tmp_path)
    continue_run(tmp_path, config)
    assert capsys.readouterr().out == ""


def test_another_number_of_ranks_continues_and_is_told_and_kept(tmp_path: Path, capsys):
    file, config = begun(tmp_path)
    changed = config.model_copy(update={"trainer": config.trainer.model_copy(update={"ranks": 1, "keep_best": None})})
    continue_run(tmp_path, changed)
    assert capsys.readouterr().out == "trainer.ranks was 2 and is 1 now: equal to rounding, not to the bit\n"
    assert load_config(file) == changed


@pytest.mark.parametrize(
    "section, changes, said",
    [
        ("trainer", {"epochs": 2}, "trainer.epochs was 1 and is 2"),
        ("optimizer", {"lr": 0.5}, "optimizer.lr was 0.0005 and is 0.5"),
        (
            "optimizer",
            {"lora": {}},
            "optimizer.lora.rank was null and is 16",
        ),
        ("envs", {"config": {"entities": 121, "widths": (2, 4)}}, "envs.config.entities was 120 and is 121"),
        ("rollouts", {"group_size": 3, "temperature": 0.5}, "rollouts.group_size was 8 and is 3; rollouts.temperature"),
        ("name", "other", "name was tiny and is other"),
    ],
)
def test_what_the_run_computes_cannot_change_and_every_key_is_named(tmp_path: Path, section, changes, said: str):
    file, _ = begun(tmp_path)
    before = file.read_text()
    with pytest.raises(UserError) as refused:
        continue_run(tmp_path, tiny_config(tmp_path, **{section: changes}))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert file.read_text() == before


@pytest.mark.parametrize(
    "section, changes",
    [
        ("eval", {"tasks": 3, "temperature": 0.0}),
        ("tracking", {"wandb": "disabled", "prometheus_port": 9000}),
        ("rollouts", {"workers": 2, "concurrency": 3, "policy_engines": 2}),
        ("baseline", True),
    ],
)
def test_what_changes_nothing_that_is_learned_is_free(tmp_path: Path, capsys, section: str, changes):
    file, _ = begun(tmp_path)
    other = tiny_config(tmp_path, **{section: changes}).model_copy(update={"root": Path("elsewhere")})
    continue_run(tmp_path, other)
    assert capsys.readouterr().out == ""
    assert load_config(file, files=False) == other


def after(folder: Path, step: int) -> None:
    """A checkpoint of ``step`` in ``folder``, as far as its state goes."""
    checkpoints = Checkpoints(folder / "checkpoints", 2)
    state = State(step=step)
    checkpoints.commit(state, checkpoints.begin(state, 0))


def test_case_11_a_run_that_has_not_begun_is_not_lengthened_and_the_key_is_named(tmp_path: Path):
    begun(tmp_path)
    with pytest.raises(UserError, match=r"^trainer\.steps was 50 and is 100: nothing has been trained yet"):
        continue_run(tmp_path, tiny_config(tmp_path, trainer={"steps": 100}))


def test_a_run_can_be_made_longer_and_what_changes_is_said(tmp_path: Path, capsys):
    file, _ = begun(tmp_path)
    after(tmp_path, 10)
    (tmp_path / "summary.json").write_text("{}")
    longer = tiny_config(tmp_path, trainer={"steps": 100})
    continue_run(tmp_path, longer)
    said = capsys.readouterr().out
    assert said.startswith(
        "trainer.steps was 50 and is 100 now: from step 11 on the schedules are those of 100 steps\n"
    )
    assert "at step 11: learning rate x 0.820 -> 0.910\n" in said
    assert "at step 11: λ parallel 0.180 -> 0.240\n" in said and "λ critical" not in said
    assert "not that of a run that was begun with 100 steps" in said
    assert load_config(file) == longer
    assert not (tmp_path / "summary.json").exists()  # parl top would call the run finished
    assert (tmp_path / "summary-50-steps.json").exists()
    continue_run(tmp_path, longer)
    assert capsys.readouterr().out == ""
    after(tmp_path, 60)
    continue_run(tmp_path, tiny_config(tmp_path, trainer={"steps": 200}))
    assert lengths(tmp_path, 200) == [[1, 50], [11, 100], [61, 200]]


def test_a_longer_run_says_how_its_budgets_change(tmp_path: Path, capsys):
    budget = {"budget": {"curriculum": {"slack": 2.0}}}
    config = tiny_config(tmp_path, rollouts=budget)
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    after(tmp_path, 10)
    continue_run(tmp_path, tiny_config(tmp_path, rollouts=budget, trainer={"steps": 100}))
    assert "at step 11: critical budget x 1.600 -> 1.800\n" in capsys.readouterr().out


def test_a_run_cannot_be_made_shorter(tmp_path: Path):
    begun(tmp_path)
    after(tmp_path, 10)
    with pytest.raises(UserError, match=r"trainer\.steps was 50 and is 20: a run cannot become shorter"):
        continue_run(tmp_path, tiny_config(tmp_path, trainer={"steps": 20}))


def test_a_lengthened_run_is_rescored_as_it_was_scored(tmp_path: Path):
    config = tiny_config(tmp_path, trainer={"steps": 4})
    run = make_run(config, steps=3)
    after(run, 3)
    assert all(result.same for result in rescore(run))
    continue_run(run, config.model_copy(update={"trainer": config.trainer.model_copy(update={"steps": 40})}))
    assert all(result.same for result in rescore(run))


def test_episodes_that_the_shorter_run_had_paid_but_not_learned_from_are_collected_again(tmp_path: Path):
    config = tiny_config(tmp_path)
    run = make_run(config, steps=4)
    after(run, 3)
    continue_run(run, config.model_copy(update={"trainer": config.trainer.model_copy(update={"steps": 60})}))
    assert EpisodeStore(run / "episodes").steps() == [1, 2, 3]


@pytest.mark.parametrize("text", ["", "{", "[1]", '[["a", 2]]', "{}x"])
def test_a_damaged_record_of_lengths_is_named(tmp_path: Path, text: str):
    (tmp_path / "lengths.json").write_text(text)
    with pytest.raises(UserError, match=r"lengths\.json is damaged"):
        lengths(tmp_path, 50)
