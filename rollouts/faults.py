"""Faults of the machine, as opposed to those of the policy and the program.

Machine faults hit long and wide episodes more often: training on the remaining ones would be biased. So an
affected episode is run again with the same seed and therefore the same result. The policy's own ends
(budgets, malformed turns, the episode's own time) stay. Ray is not imported here.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor

import httpx

from envs.base import Unscored as Unscored  # environments raise it too

_PLAIN_OS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)
_MACHINE = (OSError, MemoryError, EOFError, BrokenExecutor, httpx.TransportError)
STALL_S = 3.0  # an event loop or replica silent for longer is a machine fault


class MachineFault(RuntimeError):
    """A fault other than the policy's: affected episodes are run again."""


class Lost(MachineFault):
    """An actor or server is dead or does not answer: it must be restarted first."""


class EngineSilent(Lost, TimeoutError):
    """A replica did not answer within its deadline plus transfer time."""


class ToolsLost(MachineFault):
    """The tools' machine failed (``ToolResult.machine``)."""


class Stalled(MachineFault):
    """A deadline passed because the worker or an engine stood still."""


class EngineFailed(MachineFault):
    """An engine refused or failed independently of the policy: a full cache, an invalid answer."""


def first_cause(error: BaseException) -> BaseException:
    """The first cause, without exception groups and Ray's wrappers."""
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
    """``error`` as a machine fault; None if it is the program's or a tool's."""
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
    """Ticks on the event loop that starts it, and records when the loop stood still.

    ``now`` is the loop's clock. Start it on the loop that it watches; any thread may read it.
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
        """Seconds since its last tick."""
        return self._now() - self._last

    def stalled(self, since: float) -> float:
        """The longest stall of the loop after ``since``; 0 without one."""
        return longest(self._gaps, since, self._last, self._now())


def longest(gaps: list[tuple[float, float]], since: float, open_since: float, now: float) -> float:
    """The longest of ``gaps`` that ended after ``since``, or of the current one; 0 if all are short."""
    spans: Iterator[float] = (end - begin for begin, end in gaps if end > since)
    worst = max([*spans, now - open_since])
    return worst if worst > STALL_S else 0.0
