"""Recipes for one to hundreds of GPUs: they load, and their own `parl plan` lines fit."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from model.kimi.config import ModelConfig
from parl.cli.main import app
from parl.config.load import load_config

ROOT = Path(__file__).parents[3]
RECIPES = sorted((ROOT / "configs" / "recipes").glob("*.yaml"))
LINES = [
    (path, line) for path in RECIPES for line in re.findall(r"^#   parl (plan .*)$", path.read_text(), re.MULTILINE)
]


def test_each_recipe_says_how_to_plan_it():
    assert len(RECIPES) == 4 and {path for path, _ in LINES} == set(RECIPES)


@pytest.mark.parametrize(("path", "line"), LINES, ids=[f"{path.stem}-{i}" for i, (path, _) in enumerate(LINES)])
def test_its_plan_fits(path: Path, line: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    done = CliRunner().invoke(app, shlex.split(line))
    assert done.exit_code == 0, done.output
    used, whole = re.search(r"memory +│ ([\d.]+) GB of ([\d.]+) GB", done.output).groups()  # type: ignore[union-attr]
    assert float(used) <= float(whole)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_loads_and_its_layout_is_the_planned_one(path: Path):
    config = load_config(path, None, files=False)
    parallel, line = config.trainer.parallel, next(line for p, line in LINES if p == path)
    options = dict(re.findall(r"--([a-z-]+) (\S+)", line))
    assert config.trainer.ranks == int(options["gpus"]) and parallel.zero == int(options["zero"])
    assert parallel.expert_parallel == int(options.get("ep", 1)) and parallel.recompute
    assert (parallel.offload != "none") == (options.get("offload", "none") != "none")
    assert config.trainer.micro_tokens == int(options.get("micro-tokens", 4096))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_model_is_a_shape_of_configs_models(path: Path):
    shape = load_config(path, None, files=False).model.shape
    known = [load_config(file, None, files=False).model.shape for file in (ROOT / "configs" / "models").glob("*.yaml")]
    assert isinstance(shape, ModelConfig) and shape in known


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_its_first_line_says_that_it_was_never_run(path: Path):
    assert path.read_text().splitlines()[0].startswith("# NEVER RUN")
