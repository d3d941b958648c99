"""The rollout worker: order of episodes, concurrency, and dead engines as opposed to failures."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError
from stored import make_episode
from tiny import tiny_model

from envs.base import Role
from envs.world.config import WorldConfig
from envs.world.environment import WorldEnvironment
from envs.world.reference import ReferencePolicy, subagent_act
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from rollouts.config import RolloutsConfig
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import EpisodeStatus, Trace
from rollouts.worker import EngineLost, RolloutWorker

SETTINGS = {"seed": 1, "temperature": 1.0, "critical_budget": 0}


class Broken:
    """An engine that raises ``error``."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def generate(self, prompt, sampling, *, session, deadline_s, media=()):
        raise self.error

    async def release(self, session: str) -> None:
        pass


class Counting(WorldEnvironment):
    """Records the largest number of open sessions."""

    now = most = 0

    async def open(self, task, **place):
        self.now += 1
        self.most = max(self.most, self.now)
        session = await super().open(task, **place)
        await asyncio.sleep(0.002)
        close = session.close

        async def counted() -> None:
            self.now -= 1
            await close()

        session.close = counted
        return session


@pytest.fixture(scope="module")
def tokenizer_path(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tokenizer.save(tmp_path_factory.mktemp("worker")).parent)


@pytest.fixture
def environment() -> Counting:
    return Counting(WorldConfig(entities=120, widths=(2, 4), mix={"wide": 1.0}))


def worker_of(environment: WorldEnvironment, path: str, frozen: object | None = None, **config) -> RolloutWorker:
    """A worker whose agents follow scripts; ``frozen`` replaces the sub-agents' engine."""
    worker = RolloutWorker(
        environment, path, RolloutsConfig(**config), policy=[None], frozen=[None], name="w", model=tiny_model()
    )
    tokenizer = Tokenizer.load(Path(path))
    task = environment.task_stream("train", 0)[0]
    policy = ReferencePolicy(style="parallel", seed=0)

    def pool(trace: Trace):
        if trace.role is Role.ORCHESTRATOR:
            return ScriptedEngine(trace, KimiChat(tokenizer), lambda history: policy.act(task, history))
        return frozen or ScriptedEngine(trace, KimiChat(tokenizer), lambda history: subagent_act(trace.prompt, history))

    worker._pool = pool
    return worker


async def test_attempts_come_in_order_and_at_most_so_many_run_at_once(environment: Counting, tokenizer_path: str):
    worker = worker_of(environment, tokenizer_path, concurrency=3)
    episodes = await worker.run(environment.task_stream("train", 0)[0], [4, 2, 9, 0, 1, 3, 5], **SETTINGS)
    assert [episode.index for episode in episodes] == [4, 2, 9, 0, 1, 3, 5]
    assert {episode.status for episode in episodes} == {EpisodeStatus.ANSWERED}
    assert all(episode.subagents for episode in episodes)
    assert environment.most == 3


async def test_spawning_can_be_switched_off_for_a_run(environment: Counting, tokenizer_path: str):
    worker = worker_of(environment, tokenizer_path)
    (episode,) = await worker.run(environment.task_stream("train", 0)[0], [0], **SETTINGS, spawning=False)
    assert episode.status is EpisodeStatus.MALFORMED and not episode.subagents


@pytest.mark.parametrize("error", [ActorDiedError(), ActorUnavailableError("away", None)])
async def test_an_engine_that_died_under_a_sub_agent_means_run_it_again(environment, tokenizer_path, error):
    worker = worker_of(environment, tokenizer_path, frozen=Broken(error))
    with pytest.raises(EngineLost):
        await worker.run(environment.task_stream("train", 0)[0], [0, 1], **SETTINGS)


async def test_any_other_failure_is_an_episode(environment: Counting, tokenizer_path: str):
    worker = worker_of(environment, tokenizer_path, frozen=Broken(ValueError("odd")))
    (episode,) = await worker.run(environment.task_stream("train", 0)[0], [0], **SETTINGS)
    assert (episode.status, episode.error) == (EpisodeStatus.FAILED, "ValueError: odd")


async def test_the_attempts_beside_one_that_lost_its_engine_end_with_it(environment, tokenizer_path, monkeypatch):
    worker = worker_of(environment, tokenizer_path, concurrency=2)
    first, second = (environment.task_stream("train", 0)[number] for number in range(2))
    running = 0

    async def episode(task, settings, index, seed, critical_budget, flight):
        nonlocal running
        running += 1
        try:
            if (task, index) == (first, 0):
                raise EngineLost("gone")
            while not flight.halting:
                await asyncio.sleep(0)
            flight.halted = True
        finally:
            running -= 1

    monkeypatch.setattr(worker, "_episode", episode)
    lost = asyncio.create_task(worker.advance(0, first, [None] * 3, **SETTINGS))
    waits = asyncio.create_task(worker.advance(1, second, [None] * 2, **SETTINGS))
    with pytest.raises(EngineLost):
        await lost
    assert running <= 2  # none of the first group keeps a slot from the second
    async with asyncio.timeout(5):
        await worker.suspend()
        assert await waits == [None, None]
    assert running == 0


async def test_an_attempt_halted_before_it_gets_going_keeps_its_session(environment, tokenizer_path, monkeypatch):
    worker, task = worker_of(environment, tokenizer_path, concurrency=1), environment.task_stream("train", 0)[0]
    kept: Any = object()
    got: list[Any] = []

    async def episode(task, settings, index, seed, critical_budget, flight):
        got.append(flight.session)
        while not flight.halting:
            await asyncio.sleep(0)
        flight.halted = True

    monkeypatch.setattr(worker, "_episode", episode)
    worker._sessions[task.key, 1, SETTINGS["seed"]] = kept  # of the halt before
    for _ in range(2):  # the first attempt has the only slot
        running = asyncio.create_task(worker.advance(0, task, [None] * 2, **SETTINGS))
        async with asyncio.timeout(5):
            while not worker._flights():
                await asyncio.sleep(0)
            await worker.suspend()
            await running
    first = asyncio.create_task(worker.advance(0, task, [make_episode(task, spawning=False), None], **SETTINGS))
    async with asyncio.timeout(5):
        while not worker._flights():
            await asyncio.sleep(0)
        await worker.suspend()
        await first
    assert got == [None, None, kept]
