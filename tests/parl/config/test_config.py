"""Loading a configuration: accepted files, and messages for mistakes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from envs.research.environment import ResearchConfig
from parl.config.load import config_hash, load_config, to_yaml
from parl.config.plugin_kinds import OBJECTIVES
from parl.config.schema import Config
from parl.errors import ConfigError
from parl.learn.objective.grpo import Grpo
from parl.learn.objective.k25 import K25


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return _write


def _message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, list(overrides))
    return str(caught.value)


def test_empty_file_gives_the_defaults_and_overrides_win(write) -> None:
    assert load_config(write("")) == Config()
    config = load_config(write("trainer: {steps: 7}\nsft:\n"), ["trainer.steps=20", "optimizer.lr=3e-4", "name=x"])
    assert (config.trainer.steps, config.optimizer.lr, config.name) == (20, 3e-4, "x")
    assert config.sft == Config().sft


def test_override_of_one_mix_weight_keeps_the_others(write) -> None:
    mix = load_config(write(""), ["envs.world.mix.chain=0.9", "envs.config.widths=[3, 5]"]).envs.config
    assert mix.mix == {**Config().envs.config.mix, "chain": 0.9}
    assert mix.widths == (3, 5)


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("trainer: {step: 3}", [], ["unknown key trainer.step ", "3", "did you mean trainer.steps?"]),
        ("steps: 3", [], ["unknown key steps", "did you mean trainer.steps?"]),
        ("", ["train.steps=3"], ["unknown key train.steps", "did you mean trainer.steps?"]),
        ("", ["group_size=4"], ["did you mean rollouts.group_size?"]),
        ("", ["qqqqzz=4"], ["unknown key qqqqzz", "sections:", "trainer"]),
        ("trainer: {steps: 0}", [], ["trainer.steps = 0", "> 0"]),
        ("trainer: {steps: many}", [], ['trainer.steps = "many"', "a whole number"]),
        ("trainer: {steps: true}", [], ["trainer.steps = true", "a whole number"]),
        ("", ["rollouts.swarm=3"], ["rollouts.swarm = 3", "true or false"]),
        ("", ["sft.parallel=1.5"], ["sft.parallel = 1.5", ">= 0 and <= 1"]),
        ("", ["tracking.wandb=ofline"], ["tracking.wandb", "auto, online, offline, disabled", "did you mean offline?"]),
        ("", ["trainer=5"], ["trainer = 5", "section", "checkpoint_every"]),
        ("", ["optimizer.lr=.inf"], ["optimizer.lr", "finite"]),
        ("", ["name=a/b"], ['name = "a/b"', "matches"]),
        ("", ["envs.config.widths=4"], ["envs.config.widths = 4", "a list of 2 numbers"]),
        ("", ["tokenizer.vocab_size=99999"], ["tokenizer.vocab_size=99999 exceeds model.vocab_size="]),
        ("", ["model.qk_rope_head_dim=15"], ["model.qk_rope_head_dim=15 must be even"]),
        ("", ["model.num_experts_per_tok=999"], ["model.num_experts_per_tok=999 exceeds model.n_routed_experts="]),
        ("", ["envs.world.mix.wyde=1"], ["envs.config.mix names unknown task families", "wyde", "single_fact"]),
        (
            "",
            ["objective.name=grpa"],
            ['objective.name = "grpa"', "one of k25, grpo, gspo, cispo", "did you mean grpo?"],
        ),
        ("", ["objective.name=null"], ["objective.name = null", "one of k25"]),
        ("", ["objective=gspo"], ["objective =", "section", "name"]),
        ("objective: {name: gspo, correction: tis}", [], ["objective.correction", "grpo or cispo", "gspo has name"]),
        ("", ["objective.correction=mis"], ["objective.correction", "grpo or cispo", "k25 has name"]),
        ("", ["objective.name=cispo", "objective.tau=1"], ["objective.tau (given 1)", "objective.name = k25"]),
        (
            "",
            ["objective.name=grpo", "objective.clipp_low=1"],
            ["unknown key objective.clipp_low", "objective.clip_low?"],
        ),
        ("", ["objective.name=grpo", "objective.clip_low=2"], ["objective.clip_low = 2", "< 1"]),
        ("", ["objective.name=grpo", "objective.correction=tsi"], ["objective.correction", "did you mean tis?"]),
        (
            "objective: {name: grpo, correction_limits: [0, 3]}",
            [],
            ["objective.correction_limits=[0, 3]", "objective.correction=none", "choose tis, mis or icepop"],
        ),
        (
            "objective: {name: cispo, correction: tis, correction_limits: [0.5, 3]}",
            [],
            ["objective.correction_limits=[0.5, 3]", "no smallest weight", "icepop"],
        ),
        ("objective: {name: grpo, correction: icepop, correction_limits: [2, 3]}", [], ["smallest <= 1 <= largest"]),
        ("", ["optimizer.qk_clip=0"], ["optimizer.qk_clip = 0", "> 0"]),
        ("", ["trainer.steps"], ["trainer.steps", "KEY=VALUE"]),
        ("", ["trainer.steps.x=3"], ["trainer.steps"]),
        ("trainer: 3", ["trainer.steps=3"], ["goes below trainer"]),
        ("", ["envs.config.source=nowhere.csv"], ["envs.config.source = nowhere.csv", "no such file"]),
        ("", ["trainer.steps=[1"], ["not valid YAML"]),
        ("- 1", [], ["a mapping"]),
    ],
)
def test_a_mistake_is_named_with_key_value_and_fix(write, text: str, overrides: list[str], expected: list[str]) -> None:
    message = _message(write(text), *overrides)
    for part in expected:
        assert part in message


def test_each_objective_has_its_own_keys_and_k25_needs_no_name(write) -> None:
    assert load_config(write("objective:\n")).objective == Config().objective == K25()
    assert load_config(write("objective: {tau: 0.3}")).objective == K25(tau=0.3)
    config = load_config(write("objective: {name: grpo, clip_high: 0.28}"), ["objective.correction=icepop"])
    assert config.objective == Grpo(clip_high=0.28, correction="icepop")
    assert config.objective.limits == (0.5, 5.0)
    assert load_config(write(to_yaml(config), "again.yaml")) == config
    assert all(OBJECTIVES.resolve(name).model_fields["name"].default == name for name in OBJECTIVES.built_in)


def test_all_problems_are_listed_at_once(write) -> None:
    message = _message(write("trainer: {stepz: 1, epochs: 0}\nsft: {lr: fast}"), "rewards.lambda_finsh=1")
    assert "4 problems" in message
    for key in ("trainer.steps", "trainer.epochs = 0", "sft.lr", "rewards.lambda_finish"):
        assert key in message


def test_missing_file_lists_its_neighbours_and_bad_yaml_its_line(write, tmp_path: Path) -> None:
    path = write("a: 1", "quickstart.yaml")
    assert str(path) in _message(tmp_path / "quikstart.yaml")
    assert "run.yaml:3:" in _message(write("a: 1\nb: 2\nc: {]\n"))
    assert "run.yaml:2:1: not valid YAML: the key 'seed' is given twice" in _message(write("seed: 1\nseed: 2\n"))


def test_encodings_dots_and_capitals_are_answered_with_the_cure(write, tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: Zürich\n".encode("latin-1"))
    for given, overrides, said in [
        (tmp_path / "latin.yaml", [], "not UTF-8 .*save it as UTF-8"),
        (write("trainer.steps: 5\n", "dots.yaml"), [], r"'trainer\.steps' \(given 5\): .*trainer: \{steps: \.\.\.\}"),
        (write("seed: 1\n"), ["TRAINER.STEPS=5"], r"did you mean trainer\.steps\?"),
        (write("seed: 1\n"), ["envs.tasks=caf\udce9.jsonl"], "byte 0xe9, which is no UTF-8"),
    ]:
        with pytest.raises(ConfigError, match=f"(?is){said}"):
            load_config(given, overrides)


def test_yaml_round_trips(write) -> None:
    config = load_config(write(""), ["envs.config.widths=[3, 5]", "optimizer.lr=1e-5", "starter=a/b.bin"])
    text = to_yaml(config)
    assert "checkpoint_every" in text
    assert load_config(write(text, "again.yaml")) == config


def test_runs_of_before_environments_had_names_can_be_read(write) -> None:
    old = load_config(write("envs: {world: {widths: [3, 5]}, tasks: null}"), ["envs.world.mix.chain=0.9"])
    assert (old.envs.name, old.envs.config.widths, old.envs.config.mix["chain"]) == ("world", (3, 5), 0.9)
    said = _message(write("envs: {name: world, world: {widths: [3, 5]}}"))
    assert "unknown key envs.world.widths" in said and "envs.config.widths" in said


def test_paths_are_found_beside_the_file_first(write, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("name,x\na,1\n")
    config = load_config(write("envs: {config: {source: table.csv}}\nstarter: not-there.bin"))
    assert config.envs.config.source == tmp_path / "table.csv"
    assert config.starter == Path("not-there.bin")


def test_hash_follows_the_chosen_sections_only() -> None:
    one, other = Config(), Config.model_validate({"trainer": {"steps": 3}})
    assert config_hash(one.sft, one.model) == config_hash(other.sft, other.model)
    assert config_hash(one.trainer) != config_hash(other.trainer)
    assert len(config_hash(one.sft, 3)) == 12


@pytest.mark.filterwarnings("error")
def test_a_section_without_a_required_path_is_hashed_without_a_warning():
    research = ResearchConfig(corpus=Path("corpora"))
    assert config_hash(research.model_copy(update={"corpus": None})) != config_hash(research)


def test_loading_imports_nothing_heavy() -> None:
    code = "import sys, parl.config.load; print([m for m in ('torch', 'ray', 'wandb', 'datasets') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_section_replaced_as_a_whole_is_that_of_the_name_in_it(write) -> None:
    text = "objective: {log_ratio_max: 0.9}"
    path = write(text)
    assert load_config(path, ["objective={name: cispo}"]).objective.name == "cispo"
    assert not hasattr(load_config(path, ["objective={name: cispo}"]).objective, "tau")
    assert load_config(write("objective: {name: cispo}"), ["objective={}"]).objective == Config().objective
    assert 'objective.name = "cizpo"' in _message(write(text), "objective={name: cizpo}")


def test_a_run_from_before_the_guards_of_rewards_is_read_as_it_was_paid(write):
    whole = to_yaml(load_config(write("")), marked=True)
    guards = ("validity", "cells", "critical_failed")
    old = "\n".join(line for line in whole.splitlines() if line.split(":")[0].strip() not in guards)
    of = lambda rewards: tuple(getattr(rewards, name) for name in guards)  # noqa: E731
    assert of(load_config(write(old)).rewards) == ("any", "all", "cost")
    assert of(load_config(write(old), ["rewards.validity=news"]).rewards) == ("news", "all", "cost")
    assert of(load_config(write(whole)).rewards) == of(load_config(write("rewards: {anneal: 1}")).rewards)
    assert of(load_config(write(whole)).rewards) == ("needed", "found", "full")
