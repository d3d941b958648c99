"""What an actor answers when it is asked whether it is alive: light, beside all its work, from another thread.

``beat`` runs in a concurrency group of its own (``parl.machine.cluster.actor``), so a long kernel or a blocked event
loop does not keep it from answering; what it says tells the two apart. Who asks is ``parl.machine.watch``.
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
    """What a process and all below it have used: one that waits for the compiler which it started is not hung."""
    total = sum(process.cpu_times()[:4])  # its own, and that of children that have ended
    for child in process.children(recursive=True):
        with suppress(psutil.Error):
            total += sum(child.cpu_times()[:4])
    return total


class Beat(NamedTuple):
    """``loop_s``: seconds that the event loop has been silent; ``step_s``: that the work of now has taken so far.

    Both are 0 where nothing is under way. ``cpu_s``: CPU seconds of the process and its children so far.
    """

    pid: int
    host: str
    cpu_s: float
    loop_s: float = 0.0
    step_s: float = 0.0


class Beating:
    """A mixin for actors."""

    asynchronous = False  # whether its calls share an event loop, which may be blocked
    _pulse: Pulse | None = None

    def beat(self) -> Beat:
        """Still here."""
        return Beat(os.getpid(), socket.gethostname(), cpu_seconds(psutil.Process()), self._loop_s(), self._step_s())

    def _loop_s(self) -> float:
        return self._pulse.age() if self._pulse else 0.0

    def _step_s(self) -> float:
        return 0.0


class AsyncBeating(Beating):
    """The same for actors whose calls share an event loop."""

    asynchronous = True

    async def pulse(self) -> None:
        """Watch the event loop from here on."""
        self._pulse = self._pulse or Pulse()
