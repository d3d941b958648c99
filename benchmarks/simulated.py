"""Simulations to measure coordination: a clock that skips sleep, an environment, and an engine.

A latency is a function of (seed, call), and the engine's output one of the agent and its turn, not of time or
order. So episodes do not depend on concurrency, and the time of an ideal coordinator is known. Rendering,
parsing, budgets and transcripts are real. For benchmarks and tests.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from envs.base import Environment, ErrorKind, Gold, Role, Task, ToolCall, ToolResult, ToolSpec
from model.chat.base import ChatFormat
from rollouts.engine.base import Completion, Finish, Pictures, PoolEngine, Sampling, Update
from rollouts.engine.scripted import Action, render_action
from rollouts.prompts import ASSIGN_TASK, CREATE_SUBAGENT

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
        """(seconds, whether it fails) of the call named by ``key``: equal keys give equal draws."""
        digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=24).digest()
        normal, straggles, fails = (
            (int.from_bytes(digest[start : start + 8], "little") + 0.5) / 2**64 for start in (0, 8, 16)
        )
        seconds = self.median_s * math.exp(self.sigma * _NORMAL.inv_cdf(normal)) if self.sigma else self.median_s
        return seconds * (self.factor if straggles < self.stragglers else 1.0), fails < self.failures


class SimulatedEnvironment(Environment):
    """The tool ``probe`` with ``latency``. ``cancelled`` lists the agents that were cancelled."""

    spreads = True

    def __init__(self, latency: Latency, seed: int = 0, text: str = "ok") -> None:
        """``text`` is what every successful call returns."""
        self.latency, self.seed, self.text = latency, seed, text
        self.cancelled: list[str] = []

    def tasks(self, split: str) -> Iterable[Task]:
        """Eight tasks."""
        return [simulated_task(number, split) for number in range(8)]

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> SimulatedSession:
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
        """Sleep for the drawn time, at most ``deadline_s`` seconds."""
        seconds, fails = self._environment.tool_draw(self._task, agent_id, call)
        if seconds > deadline_s:
            await asyncio.sleep(deadline_s)
            return ToolResult(text="error: timeout", error=ErrorKind.TIMEOUT, latency_s=deadline_s)
        await asyncio.sleep(seconds)
        if fails:
            return ToolResult(text="error: server", error=ErrorKind.SERVER, latency_s=seconds)
        return ToolResult(text=self._environment.text, latency_s=seconds)

    async def cancel(self, agent_id: str) -> None:
        """Add the agent to the environment's ``cancelled``."""
        self._environment.cancelled.append(agent_id)

    async def close(self) -> None:
        """Nothing to release."""


def simulated_task(number: int, split: str = "train") -> Task:
    """Task ``number``, with a meaningless prompt and gold."""
    return Task(
        key=f"simulated-{number}",
        family="simulated",
        split=split,
        prompt=f"Task {number}",
        gold=Gold(kind="exact", answers=("done",)),
    )


Plan = Callable[[str, int], Action]  # (agent id, number of its turn) -> its action


class SimulatedEngine(PoolEngine):
    """Serves every agent of every episode with the turns of ``plan`` and draws of ``latency``.

    Failed draws raise RuntimeError: an engine cannot fail in another way.
    """

    def __init__(self, chat: ChatFormat, plan: Plan, latency: Latency) -> None:
        self._chat, self._plan, self._latency = chat, plan, latency
        self._turns: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._rendered: dict[str, list[int]] = {}
        self.policy_version = 0
        self.generated = 0

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """The plan's next turn as tokens (log-probs 0). Raises TimeoutError at the deadline."""
        turn = self._turns.get(session, 0)
        tokens = self._tokens(session, self._plan(session.rpartition("#")[2], turn))
        seconds, fails = self._latency.draw(sampling.seed, turn)
        await asyncio.sleep(min(seconds, deadline_s))
        if seconds > deadline_s:
            raise TimeoutError(f"no answer within {deadline_s} s")
        if fails:
            raise RuntimeError("simulated engine failure")
        self._turns[session] = turn + 1
        self.generated += len(tokens)
        return Completion(
            tokens=tokens, logprobs=[0.0] * len(tokens), finish=Finish.STOP, policy_version=self.policy_version
        )

    async def update(self, update: Update) -> None:
        """Set the reported version."""
        self.policy_version = update.version

    def statistics(self) -> dict[str, float]:
        """Sampled tokens."""
        return {"generated": self.generated}

    async def release(self, session: str) -> None:
        """Forget the session."""
        self._turns.pop(session, None)
        self._calls.pop(session, None)

    def _tokens(self, session: str, action: Action) -> list[int]:
        """The action in the chat format; equal turns are rendered once, since rendering replaces the model."""
        first = self._calls.get(session, 0)
        key = f"{first}{action}"
        if key not in self._rendered:
            self._rendered[key] = render_action(self._chat, action, first)
        if not isinstance(action, str):
            self._calls[session] = first + len(action)
        return self._rendered[key]


def fan_out(width: int, calls: int) -> Plan:
    """The orchestrator launches ``width`` sub-agents in one turn, which make ``calls`` calls in total."""
    spawn: Action = [(CREATE_SUBAGENT, {"name": "prober", "system_prompt": "Probe."})]
    spawn += [(ASSIGN_TASK, {"agent": "prober", "prompt": f"part {i}"}) for i in range(width)]

    def plan(agent_id: str, turn: int) -> Action:
        _, _, number = agent_id.partition("/")
        if not number:
            return "done" if turn else spawn
        own = calls // width + (int(number) < calls % width)
        return [(PROBE.name, {"n": turn})] if turn < own else "ok"

    return plan


class SkippingLoop(asyncio.SelectorEventLoop):
    """``time()`` is the CPU seconds of this process plus the seconds of sleep that were skipped."""

    def __init__(self, *, cpu: bool = True) -> None:
        """``cpu=False``: computing takes no time either, which makes a run repeatable."""
        super().__init__()
        self._cpu, self._skipped = cpu, 0.0
        select = self._selector.select  # pyright: ignore[reportAttributeAccessIssue]

        def skip(timeout: float | None) -> Any:
            events = select(0)
            if not events and timeout:
                self._skipped += timeout
            return events

        self._selector.select = skip  # pyright: ignore[reportAttributeAccessIssue]

    def time(self) -> float:
        """Seconds on this loop's clock."""
        return (time.process_time() if self._cpu else 0.0) + self._skipped


def run_on(loop: type[asyncio.AbstractEventLoop] | Any, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of ``work`` on a loop that ``loop()`` makes."""
    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(work)
