"""Finds a run by its folder or its name below runs/, and its configuration."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

from model.json_file import read_json
from parl.config.load import load_config
from parl.config.schema import Config
from parl.errors import ConfigError, UserError
from parl.presets import preset, preset_names

RUNS = Path("runs")
CONFIG = "config.yaml"
_NAMES = ("name", "seed", "root")  # a run's folder is named after these
LENGTHS = "lengths.json"  # [[first step, trainer.steps from there on], ...] of a run that was lengthened


def named_path(given: Path) -> Path:
    """``given``, or the run of that name below ``runs/``."""
    return given if given.exists() or not (RUNS / given).exists() else RUNS / given


def run_config(folder: Path, overrides: list[str] | None = None, *, files: bool = False) -> Config:
    """The configuration of the run in ``folder``; UserError with the fix if it is damaged.

    ``files``: also check that named files exist.
    """
    file = folder / CONFIG
    cure = "it is damaged, or another version's: restore it, or start the run anew from the configuration it came from"
    if file.is_file() and not file.read_bytes().strip():
        raise ConfigError(f"{file} is empty: {cure}")
    try:
        load_config(file, files=False)
    except ConfigError as error:
        raise ConfigError(f"{error}\n{file}: {cure}") from None
    return load_config(file, overrides, files=files)


def configuration(
    given: Path, overrides: list[str] | None = None, *, files: bool = True, run_first: bool = True
) -> Config:
    """The configuration of a YAML file, a preset, or a run by its folder or name.

    A run keeps its current folder. If a run and a preset have one name, the run is meant, unless
    ``run_first`` is false or an override names another run. UserError says what is wrong.
    """
    folder = named_path(given)
    others = any(override.partition("=")[0].strip() in _NAMES for override in overrides or ())
    if not folder.is_dir() or (preset(given) != given and (others or not run_first)):
        if not given.exists() and not given.suffix and preset(given) == given:
            raise UserError(f"no configuration file, preset or run is called {given}{_meant(given)}")
        return load_config(given, overrides, files=files)
    return run_config(run_folder(given), overrides, files=files).in_folder(folder)


def is_run(given: Path) -> bool:
    """Whether ``given`` can only mean a run."""
    return preset(given) == given and (named_path(given) / CONFIG).is_file()


def lengths(folder: Path, steps: int) -> list[list[int]]:
    """The rows of ``LENGTHS``, or ``steps`` throughout if there are none. UserError: damaged."""
    file = folder / LENGTHS
    if not file.is_file():
        return [[1, steps]]
    try:
        rows = [[int(first), int(length)] for first, length in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({error}): it holds [[first step, steps], ...]; without it rewards of a run"
            " that was made longer cannot be computed again"
        ) from None
    return rows


def trained_steps(policy: Path) -> int:
    """Steps of the finished training that wrote the folder ``policy``, 0 without one; UserError: damaged.

    Fewer than the run's steps if it was made longer since.
    """
    if not (policy / "model.safetensors").exists():
        return 0
    try:
        return int(read_json(policy / "meta.json")["step"])
    except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
        text = f"{policy / 'meta.json'} does not say how long the policy was trained ({error})"
        raise UserError(f"{text}: delete {policy}, --resume makes it again from the newest checkpoint") from None


def _meant(given: Path) -> str:
    """The presets and runs most similar to ``given``, else all of them."""
    runs = [file.parent.name for file in RUNS.glob(f"*/{CONFIG}")]
    close = difflib.get_close_matches(given.as_posix().lower(), [*preset_names(), *runs], n=2)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    presets = ", ".join(name for name in preset_names() if "/" not in name)
    return f"{runs_there()}; presets: {presets}"


def runs_there(beside: Path = RUNS) -> str:
    """``; there are: ...``, the runs below ``runs/`` and in ``beside``; empty if there are none."""
    runs = sorted({str(file.parent) for folder in (beside, RUNS) for file in folder.glob(f"*/{CONFIG}")})
    return f"; there are: {', '.join(runs[:8])}" if runs else ""


def run_folder(given: Path) -> Path:
    """The run's folder, from a folder or a name below runs/; UserError if there is none."""
    folder = named_path(given)
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"no run in {folder}: name one that parl train has begun, by its folder or its name in runs/{runs_there()}"
        )
    return folder
