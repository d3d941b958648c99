"""What a user names a run by - its folder, or its name below runs/ - and the configuration that it was started with."""

from __future__ import annotations

from pathlib import Path

from parl.config import Config
from parl.errors import ConfigError, UserError
from parl.loading import load_config

RUNS = Path("runs")
CONFIG = "config.yaml"


def named_path(given: Path) -> Path:
    """``given``, or the run of that name below ``runs/``."""
    return given if given.exists() or not (RUNS / given).exists() else RUNS / given


def run_config(folder: Path, overrides: list[str] | None = None, *, files: bool = False) -> Config:
    """The configuration of the run in ``folder``; UserError names a damaged one, with its cure.

    ``files``: also ask for the files that it names.
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


def runs_there() -> str:
    """``; there are: ...``, the runs below ``runs/``; empty where there are none."""
    runs = sorted(str(file.parent) for file in RUNS.glob(f"*/{CONFIG}"))
    return f"; there are: {', '.join(runs[:8])}" if runs else ""


def run_folder(given: Path) -> Path:
    """The run that is meant: a folder, or a name below runs/; UserError where there is none."""
    folder = named_path(given)
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"no run in {folder}: name one that parl train has begun, by its folder or its name in runs/{runs_there()}"
        )
    return folder
