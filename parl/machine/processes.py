"""Ray's processes on this machine: those that a run depends on are guarded, and none is left when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil

from parl.machine.ending import on_loss
from parl.machine.watch import WATCH, kill_quietly

_VITAL = ("gcs_server", "raylet")


@contextmanager
def no_leftovers(*, own: bool) -> Iterator[Callable[[], None]]:
    """Around a Ray from its start to its end; ``own``: this process starts it. Call what it gives once Ray is up."""
    before = set(_children()) if own else set()

    def begun() -> None:
        WATCH.lost = on_loss()
        WATCH.guard([one for one in _children() if one not in before and one.name() in _VITAL] if own else [])

    try:
        yield begun
    finally:
        WATCH.clear()
        for process in _children() if own else ():  # what is stopped does not hear that it is over
            if process not in before and _is_rays(process):
                kill_quietly(process.pid)


def _children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def _is_rays(process: psutil.Process) -> bool:
    """Whether it is an actor, or another of Ray's processes; False where it has just ended."""
    try:
        return process.name().startswith(("ray::", *_VITAL)) or "/ray/" in " ".join(process.cmdline())
    except psutil.Error:
        return False
