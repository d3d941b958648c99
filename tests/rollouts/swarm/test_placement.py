"""Sub-agents on any worker: the same episodes for any number of workers and any timing, and none is lost."""

from __future__ import annotations

import asyncio
import pickle
from random import Random

import numpy as np
import pytest
from tiny import random_weights, tiny_model

from benchmarks.simulated import Latency, SimulatedEngine, SimulatedEnvironment, fan_out, simulated_task
from envs.base import Role
from envs.world.config import WorldConfig
from envs.world.environment import WorldEnvironment
from envs.world.reference import ReferencePolicy
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from rollouts.config import BudgetConfig, LimitsConfig, RolloutsConfig
from rollouts.engine.base import Update
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus
from rollouts.swarm.limits import STOPPED
from rollouts.worker import RolloutWorker

SETTINGS = {"seed": 3, "temperature": 1.0, "critical_budget": 0}


class Handle:
    """A worker's actor handle without Ray: it copies arguments, with random delays both ways."""

    def __init__(self, worker: RolloutWorker, delays: Random) -> None:
        self.worker, self.delays, self.calls = worker, delays, 0

    def __getattr__(self, name: str):
        outer = self

        class Method:
            def remote(self, *args) -> asyncio.Future:
                outer.calls += name == "subagent"
                return asyncio.ensure_future(outer.travel(name, *args))

        return Method()

    async def travel(self, name: str, *args):
        await asyncio.sleep(self.delays.random() * 0.01)
        answer = await getattr(self.worker, name)(*pickle.loads(pickle.dumps(args)))
        await asyncio.sleep(self.delays.random() * 0.01)
        return pickle.loads(pickle.dumps(answer))


class Delayed:
    """An engine that answers after a random time."""

    def __init__(self, engine: EmbeddedEngine, delays: Random) -> None:
        self.engine, self.delays = engine, delays

    async def generate(self, prompt, sampling, *, session, deadline_s, media=()):
        await asyncio.sleep(self.delays.random() * 0.004)
        return await self.engine.generate(prompt, sampling, session=session, deadline_s=deadline_s)

    async def release(self, session: str) -> None:
        await self.engine.release(session)


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tokenizer.save(tmp_path_factory.mktemp("placement")).parent)


async def connected(workers: list[RolloutWorker], seed: int = 0) -> list[Handle]:
    handles = [Handle(worker, Random(seed + i)) for i, worker in enumerate(workers)]
    for i, worker in enumerate(workers):
        await worker.connect(handles, i)
    return handles


async def collected(tokenizer: Tokenizer, folder: str, count: int, seed: int) -> tuple[list[Episode], list[Handle]]:
    """Episodes of scripted orchestrators and sampled sub-agents on ``count`` workers, with delays of ``seed``."""
    config = tiny_model()
    weights = random_weights(config, 1)
    weights["lm_head.weight"][tokenizer.special["<|im_end|>"]] *= 6  # turns end
    engine = EmbeddedEngine(config, pages=4096, record_routes=True)
    await engine.update(Update(version=1, weights=weights))
    world = WorldConfig(entities=120, widths=(3, 6), mix={"wide": 1.0})
    policy = ReferencePolicy(style="parallel", seed=0)
    tasks = [WorldEnvironment(world).task_stream("train", 0)[number] for number in range(4)]
    by_prompt = {task.prompt: task for task in tasks}
    rollouts = RolloutsConfig(budget=BudgetConfig(turn_tokens=40), placement="spread")
    workers = []
    for number in range(count):
        worker = RolloutWorker(
            WorldEnvironment(world),
            folder,
            rollouts,
            policy=[None],
            frozen=[None],
            name=f"w{number}",
            model=tiny_model(),
        )
        delayed = Delayed(engine, Random(100 * seed + number))

        def pool(trace: Trace, delayed: Delayed = delayed):
            if trace.role is Role.ORCHESTRATOR:
                task = by_prompt[trace.prompt]
                return ScriptedEngine(trace, KimiChat(tokenizer), lambda history: policy.act(task, history))
            return delayed

        worker._pool = pool
        workers.append(worker)
    handles = await connected(workers, seed)
    groups = await asyncio.gather(*(workers[i % count].run(task, [0, 1], **SETTINGS) for i, task in enumerate(tasks)))
    return [episode for group in groups for episode in group], handles


async def test_the_same_episodes_for_any_number_of_workers_and_any_timing(tokenizer: Tokenizer, folder: str):
    wanted, _ = await collected(tokenizer, folder, 1, 0)
    assert {episode.status for episode in wanted} == {EpisodeStatus.ANSWERED}
    assert sum(len(episode.subagents) for episode in wanted) > 20
    for count, seed in ((2, 1), (3, 2), (3, 3)):
        got, handles = await collected(tokenizer, folder, count, seed)
        assert all(handle.calls for handle in handles)  # sub-agents did travel
        for one, other in zip(wanted, got, strict=True):
            assert (one.task.key, one.index, one.status, one.answer) == (
                other.task.key,
                other.index,
                other.status,
                other.answer,
            )
            for a, b in zip(one.traces, other.traces, strict=True):
                assert (a.agent_id, a.status, a.message, a.tokens, a.mask, a.logprobs, a.versions) == (
                    b.agent_id,
                    b.status,
                    b.message,
                    b.tokens,
                    b.mask,
                    b.logprobs,
                    b.versions,
                )
                assert (a.routes is None) == (b.routes is None)
                assert a.routes is None or np.array_equal(a.routes, b.routes)
                assert [t.spawned for t in a.turns] == [t.spawned for t in b.turns]


async def simulated(tokenizer: Tokenizer, folder: str, tool: Latency, **config) -> list[RolloutWorker]:
    workers = [
        RolloutWorker(
            SimulatedEnvironment(tool),
            folder,
            RolloutsConfig(**config),
            policy=[None],
            frozen=[None],
            name=f"w{i}",
            model=tiny_model(),
        )
        for i in range(2)
    ]
    engine = SimulatedEngine(KimiChat(tokenizer), fan_out(4, 8), Latency(median_s=0.0))
    for worker in workers:
        worker._pool = lambda trace: engine
    await connected(workers)
    return workers


async def test_a_deadline_at_a_peer_brings_back_what_was_done(tokenizer: Tokenizer, folder: str):
    limits = LimitsConfig(agent_s=0.05)
    workers = await simulated(tokenizer, folder, Latency(median_s=30.0), limits=limits)
    (episode,) = await workers[0].run(simulated_task(0), [0], **SETTINGS)
    assert episode.status is EpisodeStatus.ANSWERED
    assert [(trace.status, trace.limit, trace.steps) for trace in episode.subagents] == [
        (TraceStatus.CANCELLED, "agent_s", 1)
    ] * 4
    assert [len(worker._environment.cancelled) for worker in workers] == [2, 2]


async def test_a_stop_reaches_sub_agents_at_a_peer_and_brings_back_what_was_done(tokenizer: Tokenizer, folder: str):
    workers = await simulated(tokenizer, folder, Latency(median_s=30.0))
    running = asyncio.create_task(workers[0].run(simulated_task(0), [0], **SETTINGS))
    while not all(worker._jobs or worker is workers[0] for worker in workers):
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.03)
    await workers[0].stop()
    (episode,) = await asyncio.wait_for(running, 10.0)
    assert episode.status is EpisodeStatus.CANCELLED
    assert {(trace.status, trace.limit) for trace in episode.traces} == {(TraceStatus.CANCELLED, STOPPED)}
    assert [trace.steps for trace in episode.subagents] == [1] * 4
    assert not workers[1]._jobs


async def test_an_error_at_a_peer_fails_the_episode_by_its_own_name(tokenizer: Tokenizer, folder: str):
    workers = await simulated(tokenizer, folder, Latency(median_s=0.0))
    failing = SimulatedEngine(KimiChat(tokenizer), fan_out(4, 8), Latency(median_s=0.0, failures=1.0))
    workers[1]._pool = lambda trace: failing
    (episode,) = await workers[0].run(simulated_task(0), [0], **SETTINGS)
    assert (episode.status, episode.error) == (EpisodeStatus.FAILED, "RuntimeError: simulated engine failure")
    assert TraceStatus.RUNNING not in {trace.status for trace in episode.traces}


async def test_tools_that_do_not_say_that_they_spread_are_not_spread(folder: str):
    class Shared(SimulatedEnvironment):
        spreads = False

    shared = Shared(Latency(median_s=0.0))
    worker = RolloutWorker(shared, folder, RolloutsConfig(), policy=[None], frozen=[None], name="w", model=tiny_model())
    with pytest.raises(ValueError, match="Shared does not say"):
        await worker.connect([None], 0)
