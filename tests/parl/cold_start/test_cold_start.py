"""A starter that does not apply says which key differs and what that costs; demonstrations must fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parl.cold_start.imitation import Fit
from parl.cold_start.shipped import (
    Recipe,
    _differences,
    _settings,
    cold_start_folder,
    cold_start_hash,
    cold_start_settings,
    shipped,
    starter_note,
)
from parl.config.load import load_config
from parl.errors import UserError

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"


def quickstart(tmp_path: Path, *settings: str) -> Recipe:
    return Recipe.of(load_config(QUICKSTART, [f"root={tmp_path}", *settings]))


def test_the_shipped_starter_applies_and_says_what_it_was_made_with(tmp_path: Path):
    recipe = quickstart(tmp_path)
    folder = shipped(recipe)
    assert folder is not None and starter_note(recipe) is None
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["hash"] == cold_start_hash(recipe) and _settings(folder) == cold_start_settings(recipe)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("envs.config.widths=[2,4]", "envs.config.widths = [2, 6], not [2, 4]"),
        ("sft.tokens=12000000", "sft.tokens = 10000000, not 12000000"),
        ("model.hidden_size=96", "model.hidden_size = "),
        ("starter=absent", "no such folder"),
    ],
)
def test_another_configuration_is_told_what_differs_and_what_it_costs(tmp_path: Path, setting: str, said: str):
    recipe = quickstart(tmp_path, setting)
    note = starter_note(recipe)
    assert note and said in note and "minutes" in note and str(cold_start_folder(recipe)) in note


def test_nothing_is_said_where_nothing_is_trained(tmp_path: Path):
    recipe = quickstart(tmp_path, "sft.seed=3")
    assert starter_note(recipe)
    cold_start_folder(recipe).mkdir(parents=True)
    (cold_start_folder(recipe) / "model.safetensors").touch()
    assert starter_note(recipe) is None
    assert starter_note(quickstart(tmp_path, "starter=null", "sft.seed=4")) is None


def test_a_starter_that_does_not_say_how_it_was_made(tmp_path: Path):
    old = tmp_path / "starters" / "0123456789ab"
    old.mkdir(parents=True)
    (old / "model.safetensors").touch()
    for content in ("", "[]", '{"hash": "0123456789ab"}'):
        (old / "meta.json").write_text(content)
        note = starter_note(quickstart(tmp_path, f"starter={old.parent}"))
        assert note and "0123456789ab" in note


def test_demonstrations_that_never_fit_end_the_cold_start():
    fit = Fit(limit=100)
    for _ in range(9):
        fit.count([120] * 48)
    with pytest.raises(UserError, match=r"none of 480 demonstrations fits .* = 100 .*110 tokens"):
        fit.count([110, *[120] * 47])


def test_demonstrations_that_are_left_out_are_counted():
    fit = Fit(limit=100)
    fit.count([50, 60])
    assert fit.note() is None
    fit.count([101, 100])
    assert "1 of 4 demonstrations" in (fit.note() or "")
    for _ in range(20):
        fit.count([200] * 48)  # one that fits is enough to go on


def test_a_starter_of_another_environment_is_told_by_the_environment_alone():
    settings = {"envs.config.widths": [2, 16], "sft.seed": 1}
    wanted = {"envs.config.towns": 300, "envs.name": "town:Towns", "sft.seed": 2}
    assert _differences(wanted, settings) == ["envs.name = world, not town:Towns", "sft.seed = 1, not 2"]
