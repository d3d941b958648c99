"""Ray's processes on this machine: those that a run depends on are watched, and none is left afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from parl.machine.ending import on_loss
from parl.machine.watch import WATCH, kill_quietly

_VITAL = ("gcs_server", "raylet")


@contextmanager
def no_leftovers(*, own: bool) -> Iterator[Callable[[], None]]:
    """Around a Ray's life; ``own``: started by this process. Call the yielded function once Ray is up."""
    before = set(_children()) if own else set()

    def begun() -> None:
        WATCH.lost = on_loss()
        WATCH.guard([one for one in _children() if one not in before and one.name() in _VITAL] if own else [])

    try:
        yield begun
    finally:
        WATCH.clear()
        if own:
            end_leftovers(before)


def end_leftovers(before: set[psutil.Process]) -> None:
    """Kill what Ray has started below this process since ``before``, including stopped processes."""
    for process in _rays(psutil.Process(), but=before):
        kill_quietly(process.pid)


def _children() -> list[psutil.Process]:
    return psutil.Process().children()


def _rays(above: psutil.Process, but: set[psutil.Process]) -> list[psutil.Process]:
    """Ray's processes below ``above``, except those of another run started there."""
    try:
        found = [process for process in above.children() if process not in but and _is_rays(process)]
    except psutil.Error:
        return []
    return found + [below for process in found for below in _rays(process, but)]


def _is_rays(process: psutil.Process) -> bool:
    """Whether it is an actor, or another of Ray's processes; False if it has just ended."""
    try:
        return process.name().startswith(("ray::", *_VITAL)) or "/ray/" in " ".join(process.cmdline())
    except psutil.Error:
        return False
