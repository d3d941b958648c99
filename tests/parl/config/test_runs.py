"""How commands resolve a run, a preset or a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stored import make_run
from tiny import tiny_config

from parl.config.load import load_config
from parl.config.runs import configuration, run_config
from parl.config.yaml_text import cut_off
from parl.errors import UserError


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_run(tiny_config(Path("runs"), name="mine", trainer={"steps": 4}), tasks=2, steps=1)
    return tmp_path


@pytest.mark.parametrize("given", ["mine", "runs/mine", "runs/mine/", "runs/mine/config.yaml"])
def test_a_run_is_named_by_name_folder_or_its_configuration(here: Path, given: str):
    config = configuration(Path(given), ["eval.tasks=3"])
    assert (config.name, config.trainer.steps, config.eval.tasks) == ("mine", 4, 3)
    assert config.run_dir.resolve() == here / "runs" / "mine"


def test_a_run_that_was_moved_keeps_to_its_new_folder(here: Path):
    shutil.move("runs/mine", "runs/mine.1")
    config = configuration(Path("mine.1"), ["seed=3"])
    assert config.run_dir == Path("runs/mine.1")
    assert config.model_copy(update={"baseline": True}).run_dir == Path("runs/mine.1")
    Path("archive").mkdir()
    shutil.move("runs/mine.1", "archive/old")
    assert configuration(Path("archive/old")).run_dir == Path("archive/old")


def test_of_a_run_and_a_preset_of_one_name_the_run_is_meant_unless_another_one_is_named(here: Path):
    assert configuration(Path("quickstart")).trainer.steps == 50
    make_run(tiny_config(Path("runs"), name="quickstart", trainer={"steps": 4}), tasks=2, steps=1)
    assert configuration(Path("quickstart")).trainer.steps == 4
    assert configuration(Path("quickstart"), run_first=False).trainer.steps == 50
    assert configuration(Path("quickstart"), ["seed=2"]).run_dir == Path("runs/quickstart-seed2")
    assert configuration(Path("quickstart"), ["name=other"]).trainer.steps == 50


@pytest.mark.parametrize(
    "given, said",
    [
        ("nobody", r"no configuration file, preset or run is called nobody; there are: runs/mine"),
        ("quickstrat", "no configuration file, preset or run is called quickstrat; did you mean quickstart?"),
        ("Mine", "is called Mine; did you mean mine?"),
        ("nobody", "presets: factbook, own_model, quickstart, smollm2, vision"),
        ("nowhere.yaml", "no configuration file nowhere.yaml"),
        ("runs", "no run in runs: name one that parl train has begun"),
        ("runs/mine/episodes", "no run in runs/mine/episodes"),
    ],
)
def test_what_is_neither_is_named_with_what_there_is(here: Path, given: str, said: str):
    with pytest.raises(UserError) as refused:
        configuration(Path(given))
    assert said in str(refused.value)


def test_a_configuration_that_is_cut_off_anywhere_is_refused(here: Path):
    file = here / "runs" / "mine" / "config.yaml"
    whole = file.read_text()
    cuts = [0, *(at for at, letter in enumerate(whole, 1) if letter == "\n")][:-1]  # where what is left may be YAML
    assert len(cuts) > 100
    for cut in (*cuts[::9], 1, 40, len(whole) - 2):
        file.write_text(whole[:cut])
        with pytest.raises(UserError, match="it is damaged, or another version's"):
            run_config(Path("runs/mine"))
        if cut:  # named as any file
            with pytest.raises(UserError, match=r"cut off|not valid YAML"):
                load_config(file)
    file.write_text(whole[:-1])
    assert run_config(Path("runs/mine")).name == "mine"
    assert not any(cut_off(whole[cuts[1] : cut]) for cut in cuts)  # somebody's own file need not be marked


@pytest.mark.parametrize("text", ["", " \n", "name: [", "- a\n", "5\n", "unheard_of: 1\n", "trainer: {steps: -1}\n"])
def test_a_damaged_configuration_is_named_with_its_cure(here: Path, text: str):
    (here / "runs" / "mine" / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"runs/mine/config\.yaml.*it is damaged, or another version's: restore it"):
        try:
            run_config(Path("runs/mine"))
        except UserError as error:
            raise UserError(" ".join(str(error).split())) from None
