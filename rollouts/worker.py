"""The rollout worker: one Ray actor that runs many episodes, and all their agents, as coroutines."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from envs.base import Environment, Role, Session, Task
from model.family import Shape, family_of
from model.tokenizer.tokenizer import load_tokenizer
from rollouts.beat import AsyncBeating
from rollouts.config import RolloutsConfig
from rollouts.engine.remote import RemoteEngine
from rollouts.episode import MACHINE, Episode, Trace
from rollouts.faults import Lost
from rollouts.swarm.driven import OpensDoors
from rollouts.swarm.limits import Slots, StopSwitch
from rollouts.swarm.partial import Flight, Outcome
from rollouts.swarm.placement import Job, Placement
from rollouts.swarm.remote_subagents import run_job
from rollouts.swarm.scoring import ScoreEpisode, by_session
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

GC_THRESHOLDS = (50_000, 20, 100)  # episodes are large trees without cycles: Python's (700, 10, 10) scans them in vain
_HALT_S = 60.0  # beyond the deadline of a tool or a scorer
_Result = TypeVar("_Result")


class EngineLost(Lost):
    """An engine died or hung while an episode ran; the episode must be run again."""


class RolloutWorker(AsyncBeating):
    """Runs episodes of ``environment`` with a policy pool and a frozen pool, at most ``concurrency`` at once.

    ``model``: the policies' shape, which determines chat format and how pictures are cut. ``score``: scores
    ended episodes.
    """

    def __init__(
        self,
        environment: Environment,
        tokenizer_folder: str | os.PathLike[str],
        config: RolloutsConfig,
        *,
        policy: Sequence[Any],
        frozen: Sequence[Any],
        name: str,
        model: Shape,
        score: ScoreEpisode = by_session,
    ) -> None:
        self._environment, self._score = environment, score
        self._media, self._positions = model.pictures, model.max_position_embeddings
        self._doors: OpensDoors | None = None
        tokenizer, family = load_tokenizer(tokenizer_folder), family_of(model)
        self._chat = family.chat(model, tokenizer, thinking=config.thinks(Role.ORCHESTRATOR))
        self._subagent_chat = family.chat(model, tokenizer, thinking=config.thinks(Role.SUBAGENT))
        self._config = config
        self._name = name
        self._co_trained = config.subagent_pool == "co_trained"
        self._serve(policy, frozen)
        self._placement: Placement | None = None
        self._jobs: dict[str, StopSwitch] = {}  # sub-agents of other workers' episodes
        self._slots = asyncio.Semaphore(config.concurrency)  # first come, first served: the oldest groups first
        self._places = Slots(config.limits.subagents, config.limits.tool_calls)
        self._switch = StopSwitch()
        self._groups: dict[int, list[Outcome | Flight]] = {}  # running
        self._sessions: dict[tuple[str, int, int], Session] = {}  # of halted episodes
        self._halting = False

    async def ready(self) -> bool:
        """True once the worker is up. Freezes its current objects for garbage collection."""
        await self.pulse()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        return True

    async def connect(self, workers: Sequence[Any], mine: int) -> None:
        """Place sub-agents on ``workers``, this one being ``mine``. ValueError if the tools forbid it."""
        if not self._environment.spreads:
            kind = type(self._environment).__name__
            raise ValueError(f"rollouts.placement=spread: {kind} does not say that its agents' sessions may be apart")
        self._placement = Placement(workers, mine)

    async def serve(self, policy: Sequence[Any], frozen: Sequence[Any]) -> None:
        """Use these replicas from now on; nothing may be running."""
        self._serve(policy, frozen)

    async def loads(self) -> dict[str, float]:
        """Mean number of running requests at each pool since the last call."""
        return {"policy": self._policy.load(), "frozen": self._frozen.load()}

    async def subagent(self, job: Job) -> Trace:
        """Run a sub-agent of another worker's episode; raises errors of engine and tools."""
        self._jobs[job.name] = switch = StopSwitch()
        settings = self._settings(job.temperature, job.top_p, spawning=False, switch=switch)
        settings = replace(settings, subagent_temperature=job.temperature, subagent_top_p=job.top_p)
        try:
            return await run_job(job, self._environment, settings)
        finally:
            del self._jobs[job.name]

    async def end_subagent(self, name: str) -> None:
        """The episode of that job ends: return the trace so far."""
        if name in self._jobs:
            self._jobs[name].stop()

    async def run(
        self,
        task: Task,
        indices: Sequence[int],
        *,
        seed: int,
        temperature: float,
        top_p: float = 1.0,
        critical_budget: int,
        spawning: bool | None = None,
        pause_s: float = 0.0,
    ) -> list[Episode]:
        """Attempts ``indices`` at ``task``, in order; ``spawning`` overrides the configuration's ``swarm``.

        ``pause_s``: wait first. Raises EngineLost if an engine died meanwhile.
        """
        await asyncio.sleep(pause_s)
        spawns = self._config.swarm if spawning is None else spawning
        settings = self._settings(temperature, top_p, spawning=spawns, switch=self._switch)
        return await _together(self._one(task, settings, index, seed, critical_budget) for index in indices)

    async def stop(self) -> None:
        """End all episodes at once: they return CANCELLED, with their turns so far. Later ones run again."""
        self._switch.stop()
        self._switch = StopSwitch()

    async def advance(
        self,
        number: int,
        task: Task,
        outcomes: list[Outcome],
        *,
        seed: int,
        temperature: float,
        critical_budget: int,
        pause_s: float = 0.0,
    ) -> list[Outcome]:
        """Run the attempts of group ``number`` from ``outcomes`` until they end or :meth:`suspend`;
        EngineLost.
        """
        settings = self._settings(temperature, 1.0, spawning=self._config.swarm, switch=self._switch)
        group: list[Any] = list(outcomes)
        self._groups[number] = group
        await asyncio.sleep(pause_s)

        async def attempt(index: int) -> None:
            key = (task.key, index, seed)
            flight = Flight(saved=group[index])
            async with self._slots:
                if self._halting:
                    return
                flight.session = self._sessions.pop(key, None)  # only now: a halt before keeps it
                group[index] = flight
                episode = await self._episode(task, settings, index, seed, critical_budget, flight)
            group[index] = flight.now() if flight.halted else episode
            if flight.halted and flight.session:
                self._sessions[key] = flight.session

        unfinished = [index for index, outcome in enumerate(group) if not isinstance(outcome, Episode)]
        try:
            await _together(map(attempt, unfinished))
        finally:
            del self._groups[number]
        return group

    async def suspend(self) -> None:
        """Halt everything that :meth:`advance` runs; returns when done, raises TimeoutError if that fails."""
        self._halting = True
        longest = max(self._config.budget.call_s, self._config.score_deadline_s)
        async with asyncio.timeout(longest + _HALT_S):
            while self._groups:
                for flight in self._flights():
                    flight.halting = True
                await self._policy.interrupt()  # repeatedly: a request may still be on its way
                await self._frozen.interrupt()
                await asyncio.sleep(0.02)
        self._halting = False

    async def snapshot(self) -> dict[int, bytes]:
        """Current state of all running groups, as pickled outcomes by number, without halting them."""
        return {number: pickle.dumps(list(map(_now, group))) for number, group in self._groups.items()}

    def _flights(self) -> list[Flight]:
        return [flight for group in self._groups.values() for flight in group if isinstance(flight, Flight)]

    def _serve(self, policy: Sequence[Any], frozen: Sequence[Any]) -> None:
        self._policy = RemoteEngine(list(policy), self._name)
        self._frozen = self._policy if self._co_trained else RemoteEngine(list(frozen), self._name)

    def _settings(self, temperature: float, top_p: float, *, spawning: bool, switch: StopSwitch) -> SwarmSettings:
        """Settings of a call. Co-trained sub-agents sample like the policy, whose temperature the learner
        uses.
        """
        frozen = (self._config.subagent_temperature, 1.0)
        subagent_temperature, subagent_top_p = (temperature, top_p) if self._co_trained else frozen
        return SwarmSettings.of(
            self._config,
            chat=self._chat,
            subagent_chat=self._subagent_chat,
            pool=self._pool,
            spawning=spawning,
            temperature=temperature,
            top_p=top_p,
            subagent_temperature=subagent_temperature,
            subagent_top_p=subagent_top_p,
            train_subagents=self._co_trained,
            media=self._media,
            slots=self._places,
            switch=switch,
            placement=self._placement,
            score=self._score,
            doors=self._open_doors,
            stalled=self._stalled,
        )

    def _open_doors(self) -> OpensDoors:
        """The policy for agent programs; its server starts with the first."""
        if self._doors is None:
            from rollouts.gateway.door import Doors

            self._doors = Doors(lambda: self._policy, self._chat, self._positions)
        return self._doors

    def _pool(self, trace: Trace) -> RemoteEngine:
        return self._policy if trace.role is Role.ORCHESTRATOR else self._frozen

    async def _one(self, task: Task, settings: SwarmSettings, index: int, seed: int, critical_budget: int) -> Episode:
        async with self._slots:
            return await self._episode(task, settings, index, seed, critical_budget, Flight())

    async def _episode(
        self, task: Task, settings: SwarmSettings, index: int, seed: int, critical_budget: int, flight: Flight
    ) -> Episode:
        budget = critical_budget
        episode = await run_episode(
            task, self._environment, settings, index=index, seed=seed, critical_budget=budget, flight=flight
        )
        if isinstance(flight.fault, Lost):
            raise EngineLost(str(flight.fault))
        if flight.fault is not None:  # it is run again by the caller (parl.collect.collector)
            episode.limit, episode.error = MACHINE, str(flight.fault)
        return episode

    def _stalled(self, since: float) -> str:
        """What stood still after ``since``, in words; empty if nothing did."""
        if self._pulse and (seconds := self._pulse.stalled(since)):
            return f"the rollout worker stood still for {seconds:.1f} s"
        for name, pool in (("policy", self._policy), ("frozen", self._frozen)):
            if seconds := pool.stalled(since):
                return f"an engine of the {name} pool was silent for {seconds:.1f} s"
        return ""


async def _together(attempts: Iterable[Coroutine[Any, Any, _Result]]) -> list[_Result]:
    """All results, in order. The first error ends the other attempts: left alone, they would keep their slots, and
    :meth:`RolloutWorker.suspend` could not halt them."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(attempt) for attempt in attempts]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _now(outcome: Outcome | Flight) -> Outcome:
    return outcome.now() if isinstance(outcome, Flight) else outcome
