"""The command line: fast answers, one clear message per mistake, the right exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.testing import CliRunner

from parl.cli.main import app
from parl.config.schema import Config
from parl.errors import UserError

HEAVY = ("torch", "ray", "wandb", "datasets", "deepspeed")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("name: mine\ntrainer: {steps: 3}\n")
    return path


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    """Replace a heavy module by one with a single function; returns its recorded calls."""

    def _fake(module: str, name: str, result: object) -> list[tuple[Config, dict]]:
        calls: list[tuple[Config, dict]] = []

        def function(config: Config, **options: object) -> object:
            calls.append((config, options))
            if isinstance(result, BaseException):
                raise result
            return result

        stub = ModuleType(module)
        setattr(stub, name, function)
        monkeypatch.setitem(sys.modules, module, stub)
        return calls

    return _fake


def _run(*args: object):
    return CliRunner().invoke(app, [str(arg) for arg in args])


def _imports(*args: object) -> tuple[int, set[str], str]:
    code = (
        "import sys\nfrom parl.cli.main import app\n"
        f"try: app({[str(arg) for arg in args]!r})\n"
        "except SystemExit as error: code = error.code or 0\n"
        f"print('LOADED', code, *[m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1].split()
    assert last[0] == "LOADED", done.stderr
    return int(last[1]), set(last[2:]), done.stderr


def test_help_dry_run_and_config_mistakes_import_nothing_heavy(config: Path) -> None:
    assert _imports("--help")[:2] == (0, set())
    assert _imports("train", config, "--dry-run")[:2] == (0, set())
    code, loaded, message = _imports("train", config, "trainer.stepz=4")
    assert (code, loaded) == (2, set())
    assert "did you mean trainer.steps?" in message and "Traceback" not in message


def test_dry_run_prints_the_resolved_config_and_the_run_folder(config: Path) -> None:
    done = _run("train", config, "seed=2", "trainer.steps=20", "--dry-run")
    assert done.exit_code == 0
    printed = yaml.safe_load(done.stdout)
    assert (printed["name"], printed["seed"], printed["trainer"]["steps"]) == ("mine", 2, 20)
    assert "# run folder: runs/mine-seed2" in done.stdout


def test_train_passes_its_options_on(config: Path, fake) -> None:
    calls = fake("parl.run.job", "run_training", Path("runs/mine"))
    done = _run("train", config, "trainer.steps=5", "--resume", "optimizer.lr=1e-4")
    assert done.exit_code == 0 and "runs/mine" in done.stdout
    ((seen, options),) = calls
    assert (seen.trainer.steps, seen.optimizer.lr) == (5, 1e-4)
    assert options == {"resume": True, "from_scratch": False}


def test_sft_and_eval_pass_their_options_on(config: Path, fake) -> None:
    sft = fake("parl.cold_start.imitation", "run_sft", Path("w.safetensors"))
    evaluate = fake("parl.evaluate.evaluation", "run_eval", {"n": 4, "tasks": 60, "policies": {}})
    assert _run("sft", config, "--out", "x.bin", "--from-scratch").exit_code == 0
    assert sft[0][1] | {"check": None} == {"from_scratch": True, "out": Path("x.bin"), "check": None}
    done = _run("eval", config, "--single-agent", "--model", "m", "--n", 4, "--limit", 60, "--seed", 3, "--json")
    assert done.exit_code == 0, done.output
    ((seen, options),) = evaluate
    assert seen.eval.seed == 3
    wanted = {"model": "m", "model_name": None, "prices": None, "single_agent": True, "n": 4, "limit": 60}
    assert options == wanted | {"policies": ()}
    assert json.loads(done.stdout)["tasks"] == 60


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("no checkpoint in runs/mine; leave out --resume"), 2, "error: no checkpoint"),
        (RuntimeError("boom"), 1, "Traceback"),
        (KeyboardInterrupt(), 130, "--resume"),
    ],
)
def test_failures_have_their_exit_codes(config: Path, fake, error: BaseException, code: int, text: str) -> None:
    fake("parl.run.job", "run_training", error)
    done = _run("train", config)
    assert done.exit_code == code
    assert text in done.stderr
    assert ("Traceback" in done.stderr) == (code == 1)


def test_mistakes_on_the_command_line_exit_with_2(config: Path, tmp_path: Path) -> None:
    assert _run("train", config, "--resume", "--from-scratch").exit_code == 2
    assert _run("train", tmp_path / "none.yaml").exit_code == 2
    done = _run("report", tmp_path / "none")
    assert done.exit_code == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize("pattern", ["", "x*", "a|"])
def test_grep_refuses_what_every_text_holds(tmp_path: Path, pattern: str) -> None:
    done = _run("episodes", "grep", pattern, tmp_path)
    assert done.exit_code == 2 and "found in every text" in done.stderr


def test_version() -> None:
    done = _run("--version")
    assert done.exit_code == 0 and done.stdout.startswith("parl 0.")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere"], "no policy in nowhere"),
        (["nowhere", "--engine", "vllm"], "--engine vllm --url None: give both"),
        (["nowhere", "--url", "http://a:1"], "--engine embedded --url http://a:1: give both"),
    ],
)
def test_the_gateway_says_what_it_lacks(arguments: list[str], named: str):
    result = _run("gateway", *arguments)
    assert result.exit_code == 2 and named in result.stderr


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"cd {gone}; rmdir {gone}; exec {sys.executable} -m parl --version"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=os.environ, timeout=60)
    assert done.returncode == 2 and "current folder" in done.stderr and "Traceback" not in done.stderr
