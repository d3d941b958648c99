"""Sampling settings by agent: temperature, top-p, noise and length of every turn, in each pool and at peers."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import pytest
from tiny import tiny_model

from benchmarks.simulated import Latency, SimulatedEngine, SimulatedEnvironment, fan_out, simulated_task
from envs.base import Role
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from rollouts.config import BudgetConfig, RolloutsConfig
from rollouts.engine.base import Sampling
from rollouts.episode import Episode, EpisodeStatus, Trace
from rollouts.noise import noise_key
from rollouts.worker import RolloutWorker

WIDTH = 3


class Recording(SimulatedEngine):
    """Records the sampling of every turn."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(KimiChat(tokenizer), fan_out(WIDTH, WIDTH), Latency(median_s=0.0))
        self.seen: dict[str, list[Sampling]] = {}

    async def generate(self, prompt, sampling, *, session, deadline_s, media=()):
        self.seen.setdefault(session.rpartition("#")[2], []).append(sampling)
        return await super().generate(prompt, sampling, session=session, deadline_s=deadline_s)


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> str:
    return str(tokenizer.save(tmp_path).parent)


def worker_of(folder: str, engine: Recording, **config) -> RolloutWorker:
    environment = SimulatedEnvironment(Latency(median_s=0.0))
    worker = RolloutWorker(
        environment, folder, RolloutsConfig(**config), policy=[None], frozen=[None], name="w", model=tiny_model()
    )
    worker._pool = lambda trace: engine
    return worker


async def episode_of(worker: RolloutWorker, **settings) -> Episode:
    given = {"seed": 3, "temperature": 0.7, "top_p": 0.9, "critical_budget": 0, **settings}
    (episode,) = await worker.run(simulated_task(0), [4], **given)
    return episode


SUBAGENTS = [f"0/{i}" for i in range(WIDTH)]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"subagent_temperature": 0.2}, (0.2, 1.0)),
        ({"subagent_temperature": 0.0}, (0.0, 1.0)),
        ({"subagent_temperature": 0.2, "subagent_pool": "refreshed"}, (0.2, 1.0)),
        ({"subagent_temperature": 0.2, "subagent_pool": "co_trained"}, (0.7, 0.9)),
    ],
)
async def test_frozen_sub_agents_sample_as_they_are_set_and_co_trained_ones_as_the_policy(
    tokenizer: Tokenizer, folder: str, config: dict, wanted: tuple[float, float]
):
    engine = Recording(tokenizer)
    episode = await episode_of(worker_of(folder, engine, **config))
    assert episode.status is EpisodeStatus.ANSWERED and sorted(engine.seen) == ["0", *SUBAGENTS]
    assert {(s.temperature, s.top_p) for s in engine.seen["0"]} == {(0.7, 0.9)}
    for agent in SUBAGENTS:
        assert {(s.temperature, s.top_p) for s in engine.seen[agent]} == {wanted}
    assert [trace.trainable for trace in episode.subagents] == [config.get("subagent_pool") == "co_trained"] * WIDTH


async def test_noise_is_of_seed_task_attempt_and_agent(tokenizer: Tokenizer, folder: str):
    engine = Recording(tokenizer)
    await episode_of(worker_of(folder, engine, budget={"turn_tokens": 99}))
    key = simulated_task(0).key
    for agent, seen in engine.seen.items():
        assert {s.seed for s in seen} == {noise_key(3, key, 4, agent)}
        assert {s.max_new_tokens for s in seen} == {99} and {s.stop for s in seen} == {
            (tokenizer.special["<|im_end|>"],)
        }


class Handle:
    """A worker's actor handle without Ray: what travels is a copy."""

    def __init__(self, worker: RolloutWorker) -> None:
        self.worker, self.jobs = worker, 0
        self.subagent = self

    def remote(self, job) -> asyncio.Future:
        self.jobs += 1
        return asyncio.ensure_future(self._run(pickle.dumps(job)))

    async def _run(self, job: bytes):
        return pickle.loads(pickle.dumps(await self.worker.subagent(pickle.loads(job))))


async def two_workers(tokenizer: Tokenizer, folder: str, **config) -> tuple[list[RolloutWorker], list[Recording]]:
    engines = [Recording(tokenizer), Recording(tokenizer)]
    workers = [worker_of(folder, engine, **config) for engine in engines]
    handles = [Handle(worker) for worker in workers]
    for number, worker in enumerate(workers):
        await worker.connect(handles, number)
    return workers, engines


async def test_at_a_peer_sub_agents_sample_as_at_home(tokenizer: Tokenizer, folder: str):
    for config, wanted in (({}, (0.4, 1.0)), ({"subagent_pool": "co_trained"}, (0.7, 0.9))):
        workers, (home, peer) = await two_workers(tokenizer, folder, subagent_temperature=0.4, **config)
        await episode_of(workers[0])
        assert len(home.seen) == 3 and len(peer.seen) == 1  # the orchestrator and two; one
        agents = {**home.seen, **peer.seen}
        assert {(s.temperature, s.top_p) for a in SUBAGENTS for s in agents[a]} == {wanted}
        key = simulated_task(0).key
        assert all(s.seed == noise_key(3, key, 4, a) for a, seen in agents.items() for s in seen)


async def test_tokens_of_sub_agents_at_peers_count_as_those_at_home(tokenizer: Tokenizer, folder: str):
    """The orchestrator's second turn is refused exactly if all agents have sampled ``total_tokens``."""
    whole = await episode_of(worker_of(folder, Recording(tokenizer)))
    first = whole.orchestrator.turns[0]
    spent = first.end - first.start + sum(sum(trace.mask) for trace in whole.subagents)
    for total, status in ((spent, EpisodeStatus.OVER_BUDGET), (spent + 1, EpisodeStatus.ANSWERED)):
        budget = BudgetConfig(total_tokens=total)
        assert (await episode_of(worker_of(folder, Recording(tokenizer), budget=budget))).status is status
        workers, (_, peer) = await two_workers(tokenizer, folder, budget=budget)
        episode = await episode_of(workers[0])
        assert peer.seen and episode.status is status
        assert episode.limit == ("total_tokens" if status is EpisodeStatus.OVER_BUDGET else "")


async def test_sub_agents_do_not_look_at_what_all_have_spent(tokenizer: Tokenizer, folder: str):
    """Otherwise they would depend on concurrency. The budget stops the orchestrator's next turn."""
    whole = await episode_of(worker_of(folder, Recording(tokenizer)))
    first = whole.orchestrator.turns[0]
    budget = BudgetConfig(total_tokens=first.end - first.start)
    episode = await episode_of(worker_of(folder, Recording(tokenizer), budget=budget))
    assert [trace.tokens for trace in episode.subagents] == [trace.tokens for trace in whole.subagents]
    assert (episode.status, episode.limit) == (EpisodeStatus.OVER_BUDGET, "total_tokens")


async def test_a_peer_gives_a_sub_agent_the_steps_that_home_gives(tokenizer: Tokenizer, folder: str):
    for steps in (1, 2):
        workers, (_, peer) = await two_workers(tokenizer, folder, budget={"subagent_steps": steps})
        episode = await episode_of(workers[0])
        assert peer.seen
        assert [trace.steps for trace in episode.subagents] == [steps] * WIDTH
        assert {trace.limit for trace in episode.subagents} == ({"steps"} if steps == 1 else {""})


async def test_a_workers_places_are_those_of_the_limits(tokenizer: Tokenizer, folder: str):
    worker = worker_of(folder, Recording(tokenizer), limits={"subagents": 2, "tool_calls": 5})
    assert (worker._places.subagents._value, worker._places.tool_calls._value) == (2, 5)


async def test_whoever_speaks_for_a_role_is_its_pool(folder: str):
    worker = RolloutWorker(
        SimulatedEnvironment(Latency(median_s=0.0)),
        folder,
        RolloutsConfig(),
        policy=[None],
        frozen=[None],
        name="w",
        model=tiny_model(),
    )
    root, sub = Trace(agent_id="0", role=Role.ORCHESTRATOR), Trace(agent_id="0/0", role=Role.SUBAGENT, parent="0")
    assert (worker._pool(root), worker._pool(sub)) == (worker._policy, worker._frozen)
    assert worker._policy is not worker._frozen
