"""The distribution has its own name, includes its presets, and is not shadowed by a user's files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from parl.config.load import load_config
from parl.errors import UserError
from parl.own_packages import NAMES
from parl.plan.table import MODELS
from parl.presets import preset, preset_names, presets_folder

ROOT = Path(__file__).parents[2]
HINT = re.compile(r"pip install ['\"]?parl(?!-swarm)\b")
# modules of ours, of Python's own and of installed libraries
SHADOWS = (*NAMES, "parl", "random", "typer", "yaml", "pydantic", "tests", "benchmarks", "configs", "statistics")


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A user's folder: files and a package with our names, and one module of the user's."""
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('shadowed: {name}')\n")
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("raise RuntimeError('shadowed: envs')\n")
    (tmp_path / "plugin_of_mine.py").write_text("WORD = 'mine'\n")
    return tmp_path


def python(folder: Path, *arguments: str, path: str = "", code: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (path, str(ROOT))))}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def texts() -> Iterator[tuple[Path, str]]:
    listed = subprocess.run(["git", "ls-files", "*.py", "*.md", "*.yaml"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.split():
        if name != Path(__file__).relative_to(ROOT).as_posix():
            yield Path(name), (ROOT / name).read_text()


def test_no_text_tells_to_install_another_projects_library():
    assert HINT.search("pip install 'parl[vision]'") and not HINT.search("pip install parl-swarm")
    assert not [path for path, text in texts() if HINT.search(text)]


def test_the_distribution_is_not_called_as_another_projects():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "parl-swarm" and project["scripts"] == {"parl": "parl.cli.main:main"}


@pytest.mark.parametrize("given", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml", "configs/quickstart"])
def test_a_preset_is_found_by_its_name_from_any_folder(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(given)
    assert config.name == "quickstart"
    assert config.starter and config.starter.is_dir(), "the shipped cold start lies beside it"


def test_a_users_own_file_goes_before_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart.yaml").write_text("name: mine\n")
    assert load_config("quickstart.yaml").name == "mine"
    assert load_config("quickstart").name == "quickstart"


@pytest.mark.parametrize(
    "given", ["quickstrat", "../configs/quickstart", "/quickstart", "configs", "", ".", "starters"]
)
def test_what_names_no_preset_is_refused_with_those_that_there_are(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert preset(Path(given)) == Path(given)
    with pytest.raises(UserError, match="quickstart"):
        load_config(given)


def test_every_file_of_configs_is_offered_and_every_shape_can_be_planned():
    assert presets_folder() == ROOT / "configs"
    assert set(preset_names()) >= {"quickstart", "vision", "recipes/qwen3_8b_h100", "models/tiny"}
    assert (MODELS / "tiny.yaml").is_file()


def test_python_m_parl_is_the_command_and_nothing_in_the_working_directory_is_taken_for_ours(hostile: Path):
    (hostile / "parl.py").unlink()  # python -m looks there first: this one is Python's own rule
    assert python(hostile, "-m", "parl", "--version").startswith("parl ")
    assert "name: quickstart" in python(hostile, "-m", "parl", "train", "quickstart", "--dry-run")


def test_the_script_takes_nothing_from_the_working_directory_or_from_pythonpath(hostile: Path):
    (hostile / "user").mkdir()
    for name in NAMES:
        (hostile / "user" / f"{name}.py").write_text(f"raise RuntimeError('shadowed: {name}')\n")
    script = ["-c", "import sys; sys.path.remove(''); from parl.cli.main import main; main()", "train", "quickstart"]
    assert "name: quickstart" in python(hostile, *script, "--dry-run", path=str(hostile / "user"))


def test_a_users_module_in_the_working_directory_is_found_last(hostile: Path):
    code = (
        "import sys; sys.path.remove(''); import parl.cli.main, typer\n"
        "import os, parl.cli.main as m\n"
        "m.app = lambda: print(__import__('plugin_of_mine').WORD, sys.path[-1] == os.getcwd())\n"
        "parl.cli.main.main()"
    )
    assert python(hostile, "-c", code).split() == ["mine", "True"]


def test_a_module_that_took_our_name_already_is_named(hostile: Path):
    code = "import sys, json; sys.modules['model'] = json; import parl"
    assert "rename it, or import parl first" in python(hostile, "-P", "-c", code, code=1)


def test_the_shells_completion_is_offered():
    code = "import sys; sys.argv = ['parl', '--show-completion']; from parl.cli.main import main; main()"
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", f"{code}"], env=environment, capture_output=True, text=True)
    assert "show-completion" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_wheel_that_is_installed_elsewhere_brings_its_presets(tmp_path: Path):
    source, away = tmp_path / "source", tmp_path / "away"
    away.mkdir()
    archive = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, archive.decode().split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("docs/", "tests/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", str(source), "-w", str(tmp_path)], check=True, env=environment)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    (wheel,) = tmp_path.glob("parl_swarm-*.whl")
    own = tmp_path / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(own), "install", "--no-deps", str(wheel)], check=True, env=environment)
    (library,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    (library / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def parl(*arguments: str) -> str:
        command = [str(own.with_name("parl")), *arguments]
        done = subprocess.run(command, cwd=away, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert parl("--version").startswith("parl ")
    assert f"starter: {library}/parl/_presets/starters" in parl("train", "quickstart", "--dry-run")
    assert "small_100m" in parl("plan", "small_100m", "--gpus", "1")
