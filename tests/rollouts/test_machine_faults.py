"""Faults of the machine are run again; those of the policy and the world stay."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

import httpx
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from benchmarks.simulated import (
    Latency,
    SimulatedEngine,
    SimulatedEnvironment,
    SkippingLoop,
    fan_out,
    run_on,
    simulated_task,
)
from envs.base import ErrorKind, ToolResult
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from rollouts import faults
from rollouts.config import BudgetConfig, LimitsConfig
from rollouts.engine import remote
from rollouts.engine.client import BadAnswer, EngineGone
from rollouts.engine.embedded.pages import CacheFull
from rollouts.engine.remote import RemoteEngine
from rollouts.episode import Episode, EpisodeStatus, TraceStatus
from rollouts.faults import EngineFailed, EngineSilent, Lost, MachineFault, Pulse, Stalled, ToolsLost, machine_fault
from rollouts.swarm.partial import Flight
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

SECOND = Latency(median_s=1.0)
BUDGET = BudgetConfig(subagents=100, subagent_steps=100, episode_s=1000.0, call_s=100.0, total_tokens=10**6)


def lost_in_ray(cause: Exception) -> Exception:
    return RayTaskError("run", "Traceback", cause, proctitle="p", pid=1, ip="h").as_instanceof_cause()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ActorDiedError(), Lost),
        (EngineGone("gone"), Lost),
        (EngineSilent("silent"), Lost),
        (lost_in_ray(EngineGone("gone")), Lost),
        (lost_in_ray(ActorDiedError()), Lost),
        (ExceptionGroup("tasks", [ExceptionGroup("more", [ActorDiedError()]), ValueError("late")]), Lost),
        (BadAnswer("odd"), MachineFault),
        (ConnectionRefusedError(111, "refused"), MachineFault),
        (ConnectionResetError("reset"), MachineFault),
        (BrokenPipeError("pipe"), MachineFault),
        (TimeoutError("no answer"), MachineFault),
        (OSError(28, "No space left on device"), MachineFault),
        (OSError(24, "Too many open files"), MachineFault),
        (httpx.ConnectError("refused"), MachineFault),
        (httpx.ReadTimeout("slow"), MachineFault),
        (MemoryError(), MachineFault),
        (EOFError(), MachineFault),
        (BrokenProcessPool("died"), MachineFault),
        (lost_in_ray(MemoryError()), MachineFault),
        (ValueError("odd"), None),
        (KeyError("x"), None),
        (FileNotFoundError(2, "the tool's own"), None),
        (lost_in_ray(ValueError("odd")), None),
        (ExceptionGroup("tasks", [ValueError("odd"), ActorDiedError()]), None),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else repr(value)[:40],
)
def test_faults_are_told_apart_by_their_type(error: Exception, kind: type | None):
    found = machine_fault(error)
    assert found is None if kind is None else isinstance(found, kind)
    if found is not None:
        assert isinstance(found, Lost) == (kind is Lost)


class Tools(SimulatedEnvironment):
    """``spoil`` changes what the ``at``-th call answers, or raises."""

    def __init__(self, spoil: Any, at: int, latency: Latency = SECOND) -> None:
        super().__init__(latency)
        self.spoil, self.left = spoil, at

    async def open(self, task, **place):
        session = await super().open(task, **place)
        call = session.call

        async def spoiled(agent_id, asked, *, deadline_s):
            result = await call(agent_id, asked, deadline_s=deadline_s)
            self.left -= 1
            return self.spoil(result) if self.left == 0 else result

        session.call = spoiled  # type: ignore[method-assign]
        return session


class Failing(SimulatedEngine):
    """Raises ``error`` in the ``at``-th request."""

    def __init__(self, tokenizer: Tokenizer, error: Exception, at: int) -> None:
        super().__init__(KimiChat(tokenizer), fan_out(4, 8), SECOND)
        self.error, self.left = error, at

    async def generate(self, prompt, sampling, **more):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return await super().generate(prompt, sampling, **more)


def play(
    tokenizer: Tokenizer, environment: Any = None, engine: Any = None, model: Latency = SECOND, **settings: Any
) -> tuple[Episode, Flight]:
    """An episode of four sub-agents on a simulated clock."""
    flight = Flight()

    async def run() -> Episode:
        speaks = engine or SimulatedEngine(KimiChat(tokenizer), fan_out(4, 8), model)
        chosen = SwarmSettings(chat=KimiChat(tokenizer), pool=lambda trace: speaks, **{"budget": BUDGET, **settings})
        tools = environment or SimulatedEnvironment(SECOND)
        return await run_episode(simulated_task(0), tools, chosen, index=0, seed=0, critical_budget=0, flight=flight)

    return run_on(lambda: SkippingLoop(cpu=False), run()), flight


def stood_still(since: float) -> str:
    return "the rollout worker stood still for 9 s"


def raising(error: Exception) -> Any:
    def spoil(result: ToolResult) -> ToolResult:
        raise error

    return spoil


def test_a_whole_episode_is_nobodys_fault(tokenizer: Tokenizer):
    episode, flight = play(tokenizer, stalled=stood_still)
    assert episode.status is EpisodeStatus.ANSWERED and flight.fault is None


@pytest.mark.parametrize("at", [1, 2, 5])
@pytest.mark.parametrize("error", [CacheFull("pages"), BadAnswer("odd"), ValueError("refused"), TimeoutError("late")])
def test_whatever_an_engine_raises_is_not_the_policys(tokenizer: Tokenizer, error: Exception, at: int):
    episode, flight = play(tokenizer, engine=Failing(tokenizer, error, at))
    assert episode.status is EpisodeStatus.FAILED
    assert isinstance(flight.fault, MachineFault) and not isinstance(flight.fault, Lost)
    assert str(error) in str(flight.fault)


@pytest.mark.parametrize("error", [ActorDiedError(), EngineGone("gone"), EngineSilent("silent")])
def test_a_lost_engine_under_a_sub_agent_is_a_lost_episode(tokenizer: Tokenizer, error: Exception):
    episode, flight = play(tokenizer, engine=Failing(tokenizer, error, 4))
    assert episode.status is EpisodeStatus.FAILED and isinstance(flight.fault, Lost)


def test_a_dead_tool_server_is_no_observation(tokenizer: Tokenizer):
    dead = Tools(lambda result: replace(result, text="refused", error=ErrorKind.SERVER, machine=True), at=3)
    episode, flight = play(tokenizer, dead)
    assert episode.status is EpisodeStatus.FAILED and isinstance(flight.fault, ToolsLost)
    raised = Tools(raising(ConnectionRefusedError(111, "refused")), at=3)
    assert isinstance(play(tokenizer, raised)[1].fault, MachineFault)
    own = Tools(raising(KeyError("a bug of the tool")), at=3)
    episode, flight = play(tokenizer, own)
    assert episode.status is EpisodeStatus.FAILED and flight.fault is None


@pytest.mark.parametrize("kind", list(ErrorKind))
def test_errors_that_the_world_answers_stay_observations(tokenizer: Tokenizer, kind: ErrorKind):
    world = Tools(lambda result: replace(result, text="error: simulated", error=kind), at=3)
    episode, flight = play(tokenizer, world)
    assert episode.status is EpisodeStatus.ANSWERED and flight.fault is None
    results = [r for trace in episode.traces for turn in trace.turns for r in turn.results]
    assert any(r.text == "error: simulated" and r.error is kind for r in results)


@pytest.mark.parametrize("stalled", [False, True])
@pytest.mark.parametrize(
    ("limits", "budget", "spoil"),
    [
        (LimitsConfig(agent_s=3.0), BUDGET, None),
        (LimitsConfig(stage_s=3.0), BUDGET, None),
        (LimitsConfig(), BUDGET.model_copy(update={"episode_s": 6.0}), None),
        (LimitsConfig(), BUDGET, lambda result: replace(result, error=ErrorKind.TIMEOUT)),
    ],
    ids=["agent_s", "stage_s", "episode_s", "call_s"],
)
def test_a_deadline_counts_unless_the_machine_stood_still(
    tokenizer: Tokenizer, limits: LimitsConfig, budget: BudgetConfig, spoil: Any, stalled: bool
):
    tools = Tools(spoil, at=2) if spoil else None
    settings = {"limits": limits, "budget": budget, **({"stalled": stood_still} if stalled else {})}
    episode, flight = play(tokenizer, tools, **settings)
    if stalled:  # not an orchestrator that goes on with what was left
        assert episode.status is EpisodeStatus.FAILED and isinstance(flight.fault, Stalled)
        return
    assert flight.fault is None
    if budget is not BUDGET:
        assert (episode.status, episode.limit) == (EpisodeStatus.FAILED, "episode_s")
    elif spoil is None:
        assert {trace.status for trace in episode.subagents} == {TraceStatus.CANCELLED}


async def test_a_pulse_notices_when_its_loop_stands_still(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(faults, "STALL_S", 0.15)
    pulse, since = Pulse(every_s=0.02), asyncio.get_running_loop().time()
    await asyncio.sleep(0.1)
    assert not pulse.stalled(since)
    time.sleep(0.3)
    assert pulse.stalled(since) > 0.25  # at once, before the pulse itself has run
    await asyncio.sleep(0.1)
    assert pulse.stalled(since) > 0.25 and pulse.age() < 0.1
    assert not pulse.stalled(asyncio.get_running_loop().time())


class Handle:
    """A replica whose polls come back when ``answers`` is set."""

    def __init__(self) -> None:
        self.answers = asyncio.Event()
        self.poll, self.submit = self, self
        self.submitted = False

    def remote(self, *args: Any) -> asyncio.Future:
        async def call() -> list:
            if len(args) == 1:
                await self.answers.wait()
                self.answers.clear()
            return []

        return asyncio.ensure_future(call())


async def test_a_replicas_silence_is_known_while_it_lasts_and_afterwards(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(faults, "STALL_S", 0.1)
    monkeypatch.setattr(remote, "POLL_S", 0.05)
    handle, since = Handle(), time.monotonic()
    engine = RemoteEngine([handle], "w")
    waiting = asyncio.create_task(engine.generate([1], remote.Sampling(seed=0), session="s", deadline_s=9.0))
    await asyncio.sleep(0.05)
    assert not engine.stalled(since)
    await asyncio.sleep(0.3)
    assert engine.stalled(since) > 0.2
    handle.answers.set()
    await asyncio.sleep(0.02)
    later = time.monotonic()
    assert engine.stalled(since) > 0.2 and not engine.stalled(later)
    waiting.cancel()


async def test_a_replica_that_never_answers_is_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "_GRACE_S", 0.05)
    monkeypatch.setattr(remote, "POLL_S", 0.05)
    engine = RemoteEngine([Handle()], "w")
    with pytest.raises(EngineSilent):
        await engine.generate([1], remote.Sampling(seed=0), session="s", deadline_s=9.0)
    assert issubclass(EngineFailed, MachineFault) and not issubclass(EngineFailed, Lost)
