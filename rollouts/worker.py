"""The rollout worker: one Ray actor that runs many episodes, and all their agents, as coroutines of one event loop."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Sequence
from typing import Any

from envs.base import Environment, Role, Session, Task
from model.tokenizer import load_tokenizer
from model.vision_config import MediaLimits
from rollouts.config import RolloutsConfig
from rollouts.engine.remote import RemoteEngine
from rollouts.episode import Episode, Trace
from rollouts.partial import Flight, Outcome
from rollouts.swarm import SwarmSettings, run_episode

_HALT_S = 60.0  # beyond the tools' own deadline


class EngineLost(RuntimeError):
    """An engine died while an episode ran; the episode must be run again."""


class RolloutWorker:
    """Runs episodes of ``environment`` against a policy pool and a frozen pool. At most ``concurrency`` at once.

    ``media``: how pictures are cut for the policies; None where they cannot see.
    """

    def __init__(
        self,
        environment: Environment,
        tokenizer_folder: str,
        config: RolloutsConfig,
        *,
        policy: Sequence[Any],
        frozen: Sequence[Any],
        name: str,
        media: MediaLimits | None = None,
    ) -> None:
        self._environment = environment
        self._media = media
        self._tokenizer = load_tokenizer(tokenizer_folder)
        self._config = config
        self._policy = RemoteEngine(list(policy), name)
        self._frozen = RemoteEngine(list(frozen), name)
        self._slots = asyncio.Semaphore(config.concurrency)  # first come, first served: the oldest groups first
        self._groups: dict[int, list[Outcome | Flight]] = {}  # under way
        self._sessions: dict[tuple[str, int, int], Session] = {}  # of halted episodes
        self._halting = False

    async def ready(self) -> bool:
        """True once the worker stands."""
        return True

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
    ) -> list[Episode]:
        """Attempts ``indices`` at ``task``, in that order; ``spawning`` overrides the configuration's ``swarm``.

        Raises EngineLost when an engine died meanwhile.
        """
        settings = self._settings(temperature, top_p, spawning)
        attempts = [self._one(task, settings, index, seed, critical_budget) for index in indices]
        return list(await asyncio.gather(*attempts))

    async def advance(
        self,
        number: int,
        task: Task,
        outcomes: list[Outcome],
        *,
        seed: int,
        temperature: float,
        critical_budget: int,
    ) -> list[Outcome]:
        """The attempts of group ``number`` from where ``outcomes`` stand to their ends, or as far as they have come
        when :meth:`suspend` is called. Raises EngineLost."""
        settings = self._settings(temperature, 1.0, None)
        group: list[Any] = list(outcomes)
        self._groups[number] = group

        async def attempt(index: int) -> None:
            key = (task.key, index, seed)
            flight = Flight(saved=group[index], session=self._sessions.pop(key, None))
            async with self._slots:
                if self._halting:
                    return
                group[index] = flight
                episode = await self._episode(task, settings, index, seed, critical_budget, flight)
            group[index] = flight.now() if flight.halted else episode
            if flight.halted and flight.session:
                self._sessions[key] = flight.session

        unfinished = [index for index, outcome in enumerate(group) if not isinstance(outcome, Episode)]
        try:
            await asyncio.gather(*map(attempt, unfinished))
        finally:
            del self._groups[number]
        return group

    async def suspend(self) -> None:
        """Halt everything that :meth:`advance` runs, and return when it has; raises TimeoutError where it does not."""
        self._halting = True
        async with asyncio.timeout(self._config.budget.call_s + _HALT_S):
            while self._groups:
                for flight in self._flights():
                    flight.halting = True
                await self._policy.interrupt()  # again and again: a request may still be on its way
                await self._frozen.interrupt()
                await asyncio.sleep(0.02)
        self._halting = False

    async def snapshot(self) -> dict[int, bytes]:
        """All groups under way as they stand, pickled outcomes by number: nothing is halted."""
        return {number: pickle.dumps(list(map(_now, group))) for number, group in self._groups.items()}

    def _flights(self) -> list[Flight]:
        return [flight for group in self._groups.values() for flight in group if isinstance(flight, Flight)]

    def _settings(self, temperature: float, top_p: float, spawning: bool | None) -> SwarmSettings:
        return SwarmSettings(
            tokenizer=self._tokenizer,
            pool=self._pool,
            budget=self._config.budget,
            spawning=self._config.swarm if spawning is None else spawning,
            temperature=temperature,
            top_p=top_p,
            subagent_temperature=self._config.subagent_temperature,
            media=self._media,
        )

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
        if "ActorDied" in episode.error or "ActorUnavailable" in episode.error or "RayActorError" in episode.error:
            raise EngineLost(episode.error)
        return episode


def _now(outcome: Outcome | Flight) -> Outcome:
    return outcome.now() if isinstance(outcome, Flight) else outcome
