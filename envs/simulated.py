"""A simulated environment: one tool that takes a set time, fails at a set rate, and does nothing else.

For measuring what coordination costs (``benchmarks/swarm.py``) and for tests. A latency is a function of (seed, what is
called), never of time or order, so that what an infinitely fast coordinator would take is known beforehand.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist

from envs.base import Environment, ErrorKind, Gold, Role, Task, ToolCall, ToolResult, ToolSpec

PROBE = ToolSpec(
    name="probe",
    description="Probe.",
    parameters={"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
)
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Log-normal seconds with median ``median_s`` and log-deviation ``sigma``.

    A share ``stragglers`` of the calls takes ``factor`` times as long; a share ``failures`` ends in an error.
    """

    median_s: float
    sigma: float = 0.0
    stragglers: float = 0.0
    factor: float = 20.0
    failures: float = 0.0

    def draw(self, *key: object) -> tuple[float, bool]:
        """(seconds, whether it fails) of the call named by ``key``: equal keys, equal draws."""
        digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=24).digest()
        normal, straggles, fails = (
            (int.from_bytes(digest[start : start + 8], "little") + 0.5) / 2**64 for start in (0, 8, 16)
        )
        seconds = self.median_s * math.exp(self.sigma * _NORMAL.inv_cdf(normal)) if self.sigma else self.median_s
        return seconds * (self.factor if straggles < self.stragglers else 1.0), fails < self.failures


class SimulatedEnvironment(Environment):
    """``probe`` with ``latency`` for every agent. ``cancelled`` lists the agents whose tools were told to stop."""

    spreads = True

    def __init__(self, latency: Latency, seed: int = 0, text: str = "ok") -> None:
        """``text`` is what every successful call returns."""
        self.latency, self.seed, self.text = latency, seed, text
        self.cancelled: list[str] = []

    def tasks(self, split: str) -> Iterable[Task]:
        """Eight tasks."""
        return [simulated_task(number, split) for number in range(8)]

    async def open(self, task: Task) -> SimulatedSession:
        """A session of ``task``."""
        return SimulatedSession(self, task)

    async def close(self) -> None:
        """Nothing to release."""

    def tool_draw(self, task: Task, agent_id: str, call: ToolCall) -> tuple[float, bool]:
        """(seconds, whether it fails) of ``call``."""
        return self.latency.draw(self.seed, task.key, agent_id, call.id)


class SimulatedSession:
    """One episode's tools."""

    def __init__(self, environment: SimulatedEnvironment, task: Task) -> None:
        self._environment, self._task = environment, task

    def tools(self, role: Role) -> list[ToolSpec]:
        """The probe, for both roles."""
        return [PROBE]

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        """Sleep as long as drawn, at most ``deadline_s`` seconds."""
        seconds, fails = self._environment.tool_draw(self._task, agent_id, call)
        if seconds > deadline_s:
            await asyncio.sleep(deadline_s)
            return ToolResult(text="error: timeout", error=ErrorKind.TIMEOUT, latency_s=deadline_s)
        await asyncio.sleep(seconds)
        if fails:
            return ToolResult(text="error: server", error=ErrorKind.SERVER, latency_s=seconds)
        return ToolResult(text=self._environment.text, latency_s=seconds)

    async def cancel(self, agent_id: str) -> None:
        """Noted in the environment's ``cancelled``."""
        self._environment.cancelled.append(agent_id)

    async def close(self) -> None:
        """Nothing to release."""


def simulated_task(number: int, split: str = "train") -> Task:
    """Task ``number``; its prompt and gold mean nothing."""
    return Task(
        key=f"simulated-{number}",
        family="simulated",
        split=split,
        prompt=f"Task {number}",
        gold=Gold(kind="exact", answers=("done",)),
    )
