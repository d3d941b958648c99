"""Heartbeats of actors: a cheap answer from another thread, whatever the actor is doing.

``beat`` runs in its own concurrency group (``parl.machine.cluster.actor``), so a long kernel or a blocked
event loop does not block it; its values tell these two apart. ``parl.machine.watch`` calls it.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import NamedTuple

import psutil

from rollouts.faults import Pulse

GROUP = "beat"  # the concurrency group


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds of a process and all below it: a process that waits for its compiler is not hung."""
    total = sum(process.cpu_times()[:4])  # its own and that of ended children
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            total += sum(child.cpu_times()[:4])
    return total


class Beat(NamedTuple):
    """``loop_s``: seconds that the event loop has been silent; ``step_s``: seconds of the current work.

    Both are 0 when idle. ``cpu_s``: CPU seconds of the process and its children so far.
    """

    pid: int
    host: str
    cpu_s: float
    loop_s: float = 0.0
    step_s: float = 0.0


class Beating:
    """A mixin for actors."""

    asynchronous = False  # whether its calls share an event loop, which may block
    _pulse: Pulse | None = None

    def beat(self) -> Beat:
        """The current heartbeat."""
        return Beat(os.getpid(), socket.gethostname(), cpu_seconds(psutil.Process()), self._loop_s(), self._step_s())

    def _loop_s(self) -> float:
        return self._pulse.age() if self._pulse else 0.0

    def _step_s(self) -> float:
        return 0.0


class AsyncBeating(Beating):
    """The same for actors whose calls share an event loop."""

    asynchronous = True

    async def pulse(self) -> None:
        """Start watching the event loop."""
        self._pulse = self._pulse or Pulse()
