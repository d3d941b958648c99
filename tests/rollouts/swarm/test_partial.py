"""Halted and continued episodes: the same bits as uninterrupted, at any moment, in any process and session."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from tiny import random_weights, tiny_model

from envs.base import Role, Task, ToolCall, ToolResult
from envs.world.config import WorldConfig
from envs.world.environment import WorldEnvironment
from envs.world.reference import ReferencePolicy, subagent_act
from model.chat.kimi import KimiChat
from model.decoder import Weights
from model.tokenizer.tokenizer import Tokenizer
from rollouts.config import BudgetConfig, RolloutsConfig
from rollouts.engine.base import Completion, Finish, Update
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import Episode, EpisodeStatus, Trace
from rollouts.swarm.partial import Flight, Suspended, turn_start
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode
from rollouts.worker import RolloutWorker

BUDGET = BudgetConfig(turn_tokens=120, episode_s=60.0)


class Remembering(WorldEnvironment):
    """A world with state: answers count the earlier calls of the agent and of the episode."""

    stateless = False
    opened = 0

    async def open(self, task: Task, **place: int):
        self.opened += 1
        session = await super().open(task, **place)
        ask, made = session.call, Counter()

        async def call(agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
            made[agent_id] += 1
            number = made[agent_id]
            result = await ask(agent_id, call, deadline_s=deadline_s)
            await asyncio.sleep(0)
            return ToolResult(text=f"{result.text} ({number})", error=result.error, latency_s=result.latency_s)

        session.call = call
        return session


class Slow(ScriptedEngine):
    """A script written token by token, which can be interrupted."""

    cut = False
    written = 0

    def __init__(self, trace: Trace, chat: KimiChat, act) -> None:
        super().__init__(trace, chat, act)
        self.trace = trace

    async def generate(self, prompt, sampling, *, session, deadline_s, media=()) -> Completion:
        whole = await super().generate(prompt, sampling, session=session, deadline_s=deadline_s)
        tokens = whole.tokens[len(prompt) - turn_start(self.trace) :]
        said = []
        for token in tokens:
            if Slow.cut:
                return Completion(tokens=said, logprobs=[0.0] * len(said), finish=Finish.INTERRUPTED, policy_version=0)
            said.append(token)
            Slow.written += 1
            await asyncio.sleep(0)
        return Completion(tokens=said, logprobs=[0.0] * len(said), finish=Finish.STOP, policy_version=0)


class Stage:
    """One episode of scripted agents, token by token, and of sampled sub-agents on an engine."""

    def __init__(self, tokenizer: Tokenizer, engine: EmbeddedEngine, environment: WorldEnvironment) -> None:
        self.tokenizer, self.engine, self.environment = tokenizer, engine, environment
        self.task = environment.task_stream("train", 3)[0]
        self.written = 0

    def settings(self) -> SwarmSettings:
        script = ReferencePolicy(style="parallel", seed=0)

        def pool(trace: Trace):
            if trace.role is Role.ORCHESTRATOR:
                return Slow(trace, KimiChat(self.tokenizer), lambda history: script.act(self.task, history))
            if trace.agent_id.endswith("1"):
                return self.engine
            return Slow(trace, KimiChat(self.tokenizer), lambda history: subagent_act(trace.prompt, history))

        return SwarmSettings(chat=KimiChat(self.tokenizer), pool=pool, budget=BUDGET)

    async def run(
        self, limit: float, saved: Suspended | None, flight: Flight | None = None, *, sampled: float = float("inf")
    ) -> Episode | Suspended:
        """Run to the end, or halt after ``limit`` written tokens or ``sampled`` tokens of the engine."""
        Slow.cut = False
        flight = flight or Flight(saved=saved)
        job = asyncio.create_task(
            run_episode(
                self.task, self.environment, self.settings(), index=0, seed=11, critical_budget=0, flight=flight
            )
        )
        first, start = self.engine.generated, Slow.written + self.engine.generated
        while not job.done():
            await asyncio.sleep(0)
            self.written = Slow.written + self.engine.generated - start
            reached = self.written >= limit or self.engine.generated - first >= sampled
            if reached and flight.state:
                flight.halting = Slow.cut = True
                await self.engine.interrupt({*self.engine._streams})
        episode = await job
        assert not flight.halted or flight.now() is not None
        return pickle.loads(pickle.dumps(flight.now() if flight.halted else episode))


def weights_that_end_turns(tokenizer: Tokenizer, seed: int) -> Weights:
    weights = random_weights(tiny_model(), seed)
    weights["lm_head.weight"][tokenizer.special["<|im_end|>"]] *= 4
    return weights


@pytest.fixture
async def stage(tokenizer: Tokenizer):
    model = tiny_model()
    engine = EmbeddedEngine(model, pages=2048)
    await engine.update(Update(version=1, weights=weights_that_end_turns(tokenizer, 1)))
    environment = Remembering(WorldConfig(entities=120, widths=(4, 4), mix={"wide": 1.0}))
    yield Stage(tokenizer, engine, environment)
    await environment.close()


def same(first: Episode, second: Episode) -> None:
    assert (first.status, first.answer, first.limit) == (second.status, second.answer, second.limit)
    for one, other in zip(first.traces, second.traces, strict=True):
        for name in ("agent_id", "name", "prompt", "status", "message", "tokens", "mask", "logprobs", "versions"):
            assert getattr(one, name) == getattr(other, name), f"{name} of {one.agent_id}"
        assert (one.routes is None) == (other.routes is None)
        assert one.routes is None or np.array_equal(one.routes, other.routes)
        for turn, twin in zip(one.turns, other.turns, strict=True):
            assert (turn.start, turn.end, turn.spawned, turn.calls) == (twin.start, twin.end, twin.spawned, twin.calls)
            assert [r.text for r in turn.results] == [r.text for r in twin.results]


async def finish(stage: Stage, rng: Random, longest: int) -> tuple[Episode, int]:
    """The episode with halts at random moments, each time in a new session; and the number of halts."""
    saved, halts = None, 0
    while True:
        outcome = await stage.run(rng.randrange(1, longest), saved)
        if isinstance(outcome, Episode):
            return outcome, halts
        saved, halts = outcome, halts + 1


async def test_halted_at_any_moment_and_continued_it_is_the_uninterrupted_episode(stage: Stage):
    whole = await stage.run(float("inf"), None)
    assert isinstance(whole, Episode) and whole.status is EpisodeStatus.ANSWERED and len(whole.subagents) == 4
    assert whole.traces[2].routes is not None and len(whole.traces[2].tokens) > 50
    length, rng, cuts = stage.written, Random(5), Counter()
    for moment in [*range(4), *(rng.randrange(length - 20) for _ in range(12))]:
        saved = await stage.run(moment, None)
        if isinstance(saved, Episode):
            continue
        cuts["inside a turn"] += any(turn_start(t) < len(t.tokens) for t in saved.episode.traces if not t.message)
        cuts["with answers"] += any(answers.results for answers in saved.answers.values())
        rest = await stage.run(float("inf"), saved)
        assert isinstance(rest, Episode)
        same(whole, rest)
    assert cuts["inside a turn"] > 4 and cuts["with answers"] > 0


async def test_halted_again_and_again_it_still_is(stage: Stage):
    whole = await stage.run(float("inf"), None)
    length = stage.written
    assert isinstance(whole, Episode)
    for seed in range(3):
        episode, halts = await finish(stage, Random(seed), length // 2 if seed else 60)
        same(whole, episode)
        assert halts > 1


async def test_a_session_that_was_kept_is_used_again_and_no_call_is_made_twice(stage: Stage):
    whole = await stage.run(float("inf"), None)
    flight = Flight()
    saved = await stage.run(stage.written // 2, None, flight)
    opened = stage.environment.opened
    assert isinstance(saved, Suspended) and flight.session is not None
    rest = await stage.run(float("inf"), None, Flight(saved=saved, session=flight.session))
    assert isinstance(rest, Episode) and isinstance(whole, Episode)
    assert stage.environment.opened == opened
    same(whole, rest)


async def test_continued_under_new_weights_every_token_keeps_its_version(stage: Stage, tokenizer: Tokenizer):
    rng = Random(1)
    mixed, tries = 0, 0
    while tries < 6 or not mixed:
        tries += 1
        assert tries < 40, "no sub-agent was cut inside its trace"
        # Counted in sampled tokens: how far the engine is when the scripts are at theirs depends on the machine.
        saved = await stage.run(float("inf"), None, sampled=rng.randrange(1, 60))
        if isinstance(saved, Episode):
            continue
        before = [(list(t.tokens), list(t.versions), list(t.logprobs)) for t in saved.episode.traces]
        weights = weights_that_end_turns(tokenizer, rng.randrange(99))
        await stage.engine.update(Update(version=stage.engine.policy_version + 1, weights=weights))
        rest = await stage.run(float("inf"), saved)
        assert isinstance(rest, Episode)
        for (tokens, versions, logprobs), trace in zip(before, rest.traces, strict=False):
            assert (trace.tokens[: len(tokens)], trace.versions[: len(tokens)]) == (tokens, versions)
            assert trace.logprobs[: len(tokens)] == logprobs
            assert len(trace.versions) == len(trace.tokens)
            if trace.routes is not None:
                assert len(trace.routes) == len(trace.tokens) and (trace.routes[:-1] >= 0).all()
        for trace in rest.subagents:
            sampled = [v for v, m in zip(trace.versions, trace.mask, strict=True) if m]
            mixed += len(set(sampled)) > 1
            assert sampled == sorted(sampled)


@pytest.fixture
def worker(tokenizer: Tokenizer, tmp_path: Path) -> RolloutWorker:
    environment = Remembering(WorldConfig(entities=120, widths=(2, 4), mix={"wide": 1.0}))
    folder = str(tokenizer.save(tmp_path).parent)
    worker = RolloutWorker(
        environment,
        folder,
        RolloutsConfig(concurrency=3),
        policy=[None],
        frozen=[None],
        name="worker",
        model=tiny_model(),
    )
    policies = {task.prompt: task for task in (environment.task_stream("train", 0)[i] for i in range(3))}

    def pool(trace: Trace):
        task, policy = policies.get(trace.prompt), ReferencePolicy(style="parallel", seed=0)
        if trace.role is Role.ORCHESTRATOR and task:
            return ScriptedEngine(trace, KimiChat(tokenizer), lambda history: policy.act(task, history))
        return ScriptedEngine(trace, KimiChat(tokenizer), lambda history: subagent_act(trace.prompt, history))

    worker._pool = pool
    worker.tasks = list(policies.values())
    return worker


SETTINGS = {"seed": 1, "temperature": 1.0, "critical_budget": 0}


async def test_a_worker_halts_all_its_groups_and_continues_them(worker: RolloutWorker):
    alone = [await worker.run(task, range(4), **SETTINGS) for task in worker.tasks]
    jobs = [asyncio.create_task(worker.advance(i, task, [None] * 4, **SETTINGS)) for i, task in enumerate(worker.tasks)]
    while not any(isinstance(o, Episode) for group in worker._groups.values() for o in group):
        await asyncio.sleep(0)
    halted = asyncio.create_task(worker.suspend())
    groups = await asyncio.gather(*jobs)
    await halted
    kinds = Counter(type(outcome).__name__ for group in groups for outcome in group)
    assert kinds["Episode"] and kinds["Suspended"] and kinds["NoneType"]
    assert kinds["Suspended"] == len(worker._sessions)
    again = [await worker.advance(i, worker.tasks[i], list(group), **SETTINGS) for i, group in enumerate(groups)]
    for group, wanted in zip(again, alone, strict=True):
        for episode, twin in zip(group, wanted, strict=True):
            assert isinstance(episode, Episode)
            same(twin, episode)
    assert not worker._sessions and not worker._groups


async def test_a_snapshot_disturbs_nothing_and_can_be_continued_elsewhere(worker: RolloutWorker):
    task = worker.tasks[0]
    alone = await worker.run(task, range(5), **SETTINGS)
    job = asyncio.create_task(worker.advance(7, task, [None] * 5, **SETTINGS))
    while not any(isinstance(outcome, Flight) and outcome.state for outcome in worker._groups.get(7, [])):
        await asyncio.sleep(0)
    for _ in range(4):
        await asyncio.sleep(0)
    outcomes = pickle.loads((await worker.snapshot())[7])
    assert any(isinstance(outcome, Suspended) for outcome in outcomes) and outcomes[4] is None
    for episode, twin in zip(await job, alone, strict=True):
        same(twin, episode)
    for episode, twin in zip(await worker.advance(8, task, outcomes, **SETTINGS), alone, strict=True):
        same(twin, episode)
