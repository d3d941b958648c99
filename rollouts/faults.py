"""Whose fault a failure is: the machine's, the policy's, or the program's.

Machine faults say nothing about the policy, and strike long and wide episodes more often than short ones: training on
what they leave over would teach what survives a broken machine. So an episode that one of them hurt is run again, with
the same seed and therefore the same result. The policy's own ends (budgets, malformed turns, the episode's own time)
stay what they are. Ray is not imported here: its exceptions can only come from where it is.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor

import httpx

_PLAIN_OS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_MACHINE = (OSError, MemoryError, EOFError, BrokenExecutor, httpx.TransportError)
STALL_S = 3.0  # an event loop or a replica that is silent for longer is the machine's doing


class MachineFault(RuntimeError):
    """Something broke that is not the policy: what it hurt is run again."""


class Lost(MachineFault):
    """An actor or server is no more, or does not answer: it has to be started again first."""


class EngineSilent(Lost, TimeoutError):
    """A replica did not answer in the time that its own deadline and the way there and back take."""


class ToolsLost(MachineFault):
    """The tools' machine failed (``ToolResult.machine``)."""


class Stalled(MachineFault):
    """A deadline passed because the worker or an engine stood still meanwhile."""


class EngineFailed(MachineFault):
    """An engine refused or failed where the policy has no say: a full cache, an answer that cannot be believed."""


def first_cause(error: BaseException) -> BaseException:
    """What went wrong first, without the groups and the wrappers of Ray that report it."""
    while True:
        inner: object = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else getattr(error, "cause", None)
        wraps = isinstance(error, BaseExceptionGroup) or is_ray(error, "RayTaskError")
        if not wraps or not isinstance(inner, BaseException) or inner is error:
            return error
        error = inner


def is_ray(error: BaseException, name: str = "RayError") -> bool:
    """Whether it is the class ``name`` of ``ray.exceptions``, without importing Ray."""
    module = sys.modules.get("ray.exceptions")
    return module is not None and isinstance(error, getattr(module, name))


def machine_fault(error: BaseException) -> MachineFault | None:
    """``error`` as a fault of the machine; None where it is the program's or a tool's own."""
    cause = first_cause(error)
    if isinstance(cause, MachineFault):
        return cause
    said = f"{type(cause).__name__}: {cause}"
    if is_ray(cause) and not is_ray(cause, "RayTaskError"):
        return Lost(said)
    if isinstance(cause, _MACHINE) and not isinstance(cause, _PLAIN_OS):
        return MachineFault(said)
    return None


class Pulse:
    """Ticks on the event loop that starts it, and remembers when the loop stood still.

    ``now`` is the loop's clock. Start it on the loop that it watches; it may be read from any thread.
    """

    def __init__(self, every_s: float = 0.5) -> None:
        self._every_s = every_s
        self._now = asyncio.get_running_loop().time
        self._last = self._now()
        self._gaps: list[tuple[float, float]] = []
        self._task = asyncio.ensure_future(self._tick())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            now = self._now()
            if now - self._last > STALL_S:
                self._gaps = [*self._gaps[-99:], (self._last, now)]
            self._last = now

    def age(self) -> float:
        """Seconds since the loop last ran this."""
        return self._now() - self._last

    def stalled(self, since: float) -> float:
        """The longest time that the loop stood still in, after ``since``; 0 where it did not."""
        return longest(self._gaps, since, self._last, self._now())


def longest(gaps: list[tuple[float, float]], since: float, open_since: float, now: float) -> float:
    """The longest of ``gaps`` that ended after ``since``, or of the one under way; 0 where all are short."""
    spans: Iterator[float] = (end - begin for begin, end in gaps if end > since)
    worst = max([*spans, now - open_since])
    return worst if worst > STALL_S else 0.0
