"""Text stays text, however YAML would read it, and a run's name is a valid folder name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from parl.config.load import load_config, to_yaml
from parl.errors import ConfigError

WORDS = ["on", "off", "no", "yes", "true", "False", "y", "123", "007", "0x1F", "0o17", "1e3", "1_000", "1.5", ".5e1"]
WORDS += ["2026-11-26", "null", "Null", "nan", "inf", "12.", "1.2.3", "a-b", "_", "x" * 200]
WORDS = [word for word in WORDS if not word.startswith(".") and not word.endswith(".")]


def loaded(folder: Path, text: str = "", *overrides: str):
    path = folder / "run.yaml"
    path.write_text(text)
    return load_config(path, list(overrides))


@pytest.mark.parametrize("word", WORDS)
def test_a_name_is_what_was_typed_as_override_and_in_the_file(tmp_path: Path, word: str):
    for config in (
        loaded(tmp_path, "", f"name={word}"),
        loaded(tmp_path, "", f'name="{word}"'),
        loaded(tmp_path, f"name: {word}\n"),
        loaded(tmp_path, f"name: '{word}'\n"),
    ):
        assert config.name == word
        assert loaded(tmp_path, to_yaml(config)).name == word


@pytest.mark.parametrize("word", ["on", "12", "@me", "a: b", "#7", "[x]", "a #b", "{", "'x", "- a", "*a", "%x", "!t"])
def test_any_text_field_takes_what_was_typed(tmp_path: Path, word: str):
    config = loaded(tmp_path, "", f"tracking.project={word}", f"root={word}", f"rollouts.http.restart={word}")
    assert (config.tracking.project, str(config.root), config.rollouts.http.restart) == (word, word, word)


@settings(deadline=None)
@given(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp")), min_size=1))
def test_every_text_survives_an_override(word: str):
    path = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
    assert load_config(path, [f"tracking.project='{word.replace(chr(39), chr(39) * 2)}'"]).tracking.project == word
    if word[0] not in "'\"":
        assert load_config(path, [f"tracking.project={word}"]).tracking.project == word


@pytest.mark.parametrize("nothing", ["null", "~", ""])
def test_a_field_that_may_be_empty_can_be_emptied(tmp_path: Path, nothing: str):
    text = "envs: {tasks: some/hub}\ntrainer: {keep_best: x}\n"
    config = loaded(tmp_path, text, f"envs.tasks={nothing}", f"trainer.keep_best={nothing}")
    assert (config.envs.tasks, config.trainer.keep_best) == (None, None)
    assert loaded(tmp_path, f"envs: {{tasks: {nothing}}}\n").envs.tasks is None


def test_words_in_sections_lists_and_variants_are_kept_too(tmp_path: Path):
    assert loaded(tmp_path, "tracking: {project: 2026-11-26}\n").tracking.project == "2026-11-26"
    assert loaded(tmp_path, "", "tracking={project: off}").tracking.project == "off"
    with pytest.raises(ConfigError, match="'on' is not an address"):
        loaded(tmp_path, "rollouts: {engine: sglang, http: {urls: [on, 12]}}\n")
    with pytest.raises(ConfigError, match=r'objective.credit = "off": must be one of episode, agent'):
        loaded(tmp_path, "objective: {name: cispo, credit: off}\n")


@pytest.mark.parametrize(
    "override, said",
    [
        ("tracking.wandb=off", 'tracking.wandb = "off": must be one of auto, online, offline, disabled'),
        ("trainer.steps=on", "trainer.steps = true: must be a whole number"),
        ("trainer.steps='3'", 'trainer.steps = "3": must be a whole number'),
        ("baseline=1", "baseline = 1: must be true or false"),
        ("baseline='on'", 'baseline = "on": must be true or false'),
    ],
)
def test_what_is_no_text_is_as_strict_as_before(tmp_path: Path, override: str, said: str):
    with pytest.raises(ConfigError) as refused:
        loaded(tmp_path, "", override)
    assert said in str(refused.value)


def test_truth_values_are_still_truth_values(tmp_path: Path):
    assert loaded(tmp_path, "baseline: on\n", "tracking.tensorboard=yes").baseline is True


BAD = [".", "..", ".git", ".hidden", "-x", "--resume", "x.", "...", "con", "CON", "nul", "Nul.txt", "aux", "prn"]
BAD += ["com1", "lpt9.log", "cold_start", "Cold_Start", "policy", "policy_best", "single_agent", "checkpoints"]
BAD += ["episodes", "eval", "evals", "subagents", "a/b", "../x", "/x", "a\\b", "a b", "", "x" * 201, "né", "a:b", "~"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_no_folder_should_have_is_refused(tmp_path: Path, name: str):
    for text, overrides in (("", [f"name={name}"]), (yaml.safe_dump({"name": name}), [])):
        with pytest.raises(ConfigError, match=r"run\.yaml: name"):
            loaded(tmp_path, text, *overrides)


@pytest.mark.parametrize("name", ["console", "nullable", "auxiliary", "com10", "x.policy", "policy2", "0", "a..b"])
def test_a_name_that_only_looks_like_one_of_those_is_taken(tmp_path: Path, name: str):
    assert loaded(tmp_path, "", f"name={name}").name == name
