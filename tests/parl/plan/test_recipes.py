"""``configs/recipes``: they load over the published shapes, their heads say what ``parl plan`` prints, and what cannot
fit is refused with bytes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.recipes import COMMAND, FIGURE, RECIPES, downloaded, with_figures
from model.hf.shape import HfShape, read_shape
from parl.cli.main import app
from parl.config.load import load_config
from parl.config.runs import run_config
from parl.config.schema import Config
from parl.errors import UserError
from parl.plan import limits
from parl.plan.limits import check_memory
from parl.plan.plan import count
from parl.plan.table import read_model

NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml"))
REAL = {"qwen3_8b_h100": 8.19e9, "qwen3_30b_a3b_8_h200": 30.53e9, "moonlight_16b_a3b_8_h100": 15.96e9,
        "k2_5_256_h200": 1026.41e9}  # fmt: skip
CARDS = {"h100": 80_000_000_000, "h200": 141_000_000_000}
_NVIDIA_SMI = "#!/bin/sh\nfor card in 1 2 3 4 5 6 7 8; do echo {}; done\n"


@pytest.fixture(autouse=True)
def models() -> Iterator[Path]:
    with downloaded() as folder:
        yield folder


def recipe(name: str) -> Config:
    return load_config(f"recipes/{name}")


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_first_that_it_was_never_run_and_then_what_parl_plan_prints_today(name: str):
    text = (RECIPES / f"{name}.yaml").read_text()
    assert text.startswith("# NEVER RUN")
    assert f"{COMMAND}configs/recipes/{name}.yaml " in text and FIGURE in text
    assert with_figures(text) == text, "python benchmarks/recipes.py --write"


@pytest.mark.parametrize("name", NAMES)
def test_a_plan_fits_and_is_of_the_configured_layout(name: str):
    text, config = (RECIPES / f"{name}.yaml").read_text(), recipe(name)
    figures = re.findall(rf"^{FIGURE}(?:memory|its peak): ([\d.]+) GB of ([\d.]+) GB$", text, re.MULTILINE)
    assert len(figures) >= 2 and all(float(used) < float(whole) for used, whole in figures)
    options = dict(re.findall(r"--([a-z-]+) (\S+)", text.partition(f"{COMMAND}configs/recipes/{name}.yaml ")[2]
                              .partition("\n")[0]))  # fmt: skip
    parallel = config.trainer.parallel
    assert config.trainer.ranks == int(options["gpus"]) and parallel.zero == int(options["zero"])
    assert parallel.expert_parallel == int(options.get("ep", 1)) and parallel.recompute
    assert (parallel.offload != "none") == (options.get("offload", "none") != "none")
    assert config.trainer.micro_tokens == int(options.get("micro-tokens", 4096))


@pytest.mark.parametrize(("name", "parameters"), REAL.items())
def test_a_recipe_of_a_published_model_has_its_shape_by_model_init(name: str, parameters: float):
    config = recipe(name)
    assert config.model.init is not None and config.model.init.parent.name == "models"
    assert count(config.model.shape).total == pytest.approx(parameters, rel=1e-3)
    assert str(config.trainer.ranks) in name.replace("8b", "").replace("a3b", "") or config.trainer.ranks == 1


def test_every_recipe_is_of_a_published_model_but_the_one_for_a_small_card():
    assert set(NAMES) == set(REAL) | {"one_24gb"}


@pytest.mark.parametrize("name", ["Qwen3-8B", "Qwen3-30B-A3B"])
def test_the_shapes_for_planning_are_those_that_were_published(name: str, models: Path):
    published = read_shape(models / "models" / name).transformers
    ours = read_model(name.lower().replace("-", "_"))[0]
    assert isinstance(ours, HfShape) and ours.transformers.items() <= published.items() and count(ours).total > 8e9


def test_moonlight_has_one_shape_in_both_families(models: Path):
    published, ours = read_shape(models / "models" / "Moonlight-16B-A3B"), read_model("moonlight_16b_a3b")[0]
    assert count(published).total == pytest.approx(count(ours).total, rel=1e-5)  # routers' biases are not counted


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("command", [["train"], ["sft"]])
def test_a_model_that_this_machine_cannot_hold_is_refused_at_once(name: str, command: list[str], monkeypatch):
    monkeypatch.setattr(limits, "machine_bytes", lambda: 24 * 2**30)
    monkeypatch.setattr(limits, "gpu_bytes", lambda: [])
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    began = time.monotonic()
    done = CliRunner().invoke(app, [*command, f"configs/recipes/{name}.yaml"])
    assert done.exit_code == 2 and time.monotonic() - began < 60
    assert re.search(r"need at least [\d,.]+ GB of memory here \(weights .*and this machine has 25.8 GB", done.stderr)
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", [name for name in REAL if name != "k2_5_256_h200"])
def test_a_recipe_fits_its_card_and_is_refused_with_bytes_on_a_smaller_one(name: str, tmp_path: Path, monkeypatch):
    config = recipe(name)
    monkeypatch.setattr(limits, "machine_bytes", lambda: 2000 * 10**9)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for mebibytes, fits in ((CARDS[name.rpartition("_")[2]] // 2**20, True), (16_000, False)):
        program.write_text(_NVIDIA_SMI.format(mebibytes))
        program.chmod(0o755)
        if fits:
            check_memory(config.model, config.optimizer, config.trainer)
        else:
            with pytest.raises(UserError, match=r"each rank needs [\d.]+ GB on its GPU \(weights .*16\.8 GB"):
                check_memory(config.model, config.optimizer, config.trainer)


def test_a_folder_without_a_tokenizer_is_named_and_not_a_crash(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limits, "machine_bytes", lambda: 2**50)
    done = CliRunner().invoke(app, ["train", "configs/recipes/qwen3_8b_h100.yaml", "--dry-run"])
    assert done.exit_code == 2 and "model.init: no tokenizer at" in done.stderr and "Traceback" not in done.stderr


def test_a_tower_is_left_out_where_the_configuration_says_null_and_stays_so_in_the_runs_own(models: Path):
    config = recipe("k2_5_256_h200")
    assert config.model.pictures is None and config.model.shape.vision is None
    alone = ["model={init: models/Kimi-K2.5}", "trainer.parallel={zero: 0}", "rollouts={engine: embedded}"]
    seeing = load_config("recipes/k2_5_256_h200", alone)
    assert seeing.model.pictures is not None
    from parl.config.load import to_yaml

    run = models / "run"
    run.mkdir()
    (run / "config.yaml").write_text(to_yaml(config, marked=True))
    assert run_config(run).model.shape == config.model.shape
    with pytest.raises(UserError, match=r"model\.hidden_size = 8: .* has 7168"):
        load_config("recipes/k2_5_256_h200", ["model.hidden_size=8"])
