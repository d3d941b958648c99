"""Claim a run's folder: create it, move an earlier run aside, or resume in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from model.files import remove_leftovers, write_text
from parl.config.load import to_yaml
from parl.config.runs import run_config
from parl.config.schema import Config
from parl.errors import ConfigError, UserError
from parl.machine.ownership import LOCK, owning
from parl.run.resume import continue_run
from parl.shown.terminal import echo

_CURE = "take another name=, or wait for it"
_MARKS = ("metrics.jsonl", "checkpoints", "episodes", "policy", "summary.json")  # files that only a run has


@contextmanager
def claimed(config: Config, *, resume: bool) -> Iterator[Path]:
    """The run's folder, locked inside the block, with ``config`` in its config.yaml.

    UserError, before anything is moved or written: another process owns it, there is nothing to resume, or it
    is another run's or no run's folder.
    """
    run_dir = config.run_dir
    if resume and not (run_dir / "config.yaml").is_file():
        raise UserError(f"nothing to resume in {run_dir}: start without --resume")
    whose = (config.name, config.seed)
    _check_earlier(run_dir, whose, resume)
    with ExitStack() as stack:
        stack.enter_context(owning(run_dir, "a run", _CURE))
        _check_earlier(run_dir, whose, resume)  # another process may have come and gone since
        if resume:
            continue_run(run_dir, config)
        elif _holdings(run_dir):
            stack.enter_context(_moved_aside(run_dir))
        _say_alike(run_dir)
        remove_leftovers(run_dir)
        if not resume:
            write_text(run_dir / "config.yaml", to_yaml(config, marked=True))
        yield run_dir


@contextmanager
def _moved_aside(run_dir: Path) -> Iterator[None]:
    """Rename the locked earlier run in ``run_dir``, and create a new folder of the old name."""
    with ExitStack() as inner:
        for lock in (*run_dir.glob(f"*/{LOCK}"), *run_dir.glob(f"*/*/{LOCK}")):
            inner.enter_context(owning(lock.parent, "something", _CURE))
        number = 1
        while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
            number += 1
        run_dir.rename(aside)
    echo(f"the earlier run is kept in {aside}")
    with owning(run_dir, "a run", _CURE):
        yield


def _holdings(folder: Path) -> list[str]:
    """Contents of ``folder`` except what a run that ended at once leaves."""
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK and not path.name.endswith(".tmp"))


def _check_earlier(run_dir: Path, whose: tuple[str, int], resume: bool) -> None:
    """UserError unless ``run_dir`` is a folder of a run with the name and seed ``whose``."""
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is a file, not a run's folder: take another name=")
    there = _holdings(run_dir)
    file = run_dir / "config.yaml"
    if not file.is_file():
        if there and not any(name in there for name in _MARKS):
            raise UserError(f"{run_dir} is there and holds no run, but {', '.join(there[:4])}: take another name=")
        return
    try:
        earlier = run_config(run_dir)
    except ConfigError:
        if resume:
            raise
        if any(name in there for name in _MARKS):
            return  # it is moved aside like any other
        raise UserError(f"{run_dir} holds a config.yaml that is no run's: take another name=") from None
    if (earlier.name, earlier.seed) != whose:
        was, now = (f"name={name} seed={seed}" for name, seed in ((earlier.name, earlier.seed), whose))
        raise UserError(f"{run_dir} is the run {was}, and {now} would have the same folder: take another name=")


def _say_alike(run_dir: Path) -> None:
    """Warn of runs whose names differ only in case: some file systems ignore it."""
    for other in run_dir.parent.iterdir():
        if other.name != run_dir.name and other.name.casefold() == run_dir.name.casefold():
            echo(f"{other} is another run: file systems that ignore case take it for {run_dir}")
