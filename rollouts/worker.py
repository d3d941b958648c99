"""The rollout worker: one Ray actor that runs many episodes, and all their agents, as coroutines of one event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from typing import Any

from envs.base import Environment, Role, Task
from model.tokenizer import load_tokenizer
from model.vision_config import MediaLimits
from rollouts.config import RolloutsConfig
from rollouts.engine.remote import RemoteEngine
from rollouts.episode import Episode, Trace
from rollouts.limits import Slots, StopSwitch
from rollouts.swarm import SwarmSettings, run_episode

GC_THRESHOLDS = (50_000, 20, 100)  # episodes are large trees without cycles: Python's (700, 10, 10) walks them in vain
_LOST = ("ActorDied", "ActorUnavailable", "RayActorError", "EngineGone")  # errors of an engine that is no more


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
        self._slots = asyncio.Semaphore(config.concurrency)
        self._places = Slots(config.limits.subagents, config.limits.tool_calls)
        self._switch = StopSwitch()

    async def ready(self) -> bool:
        """True once the worker stands. What it holds by now is taken out of garbage collection."""
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
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
        settings = SwarmSettings(
            tokenizer=self._tokenizer,
            pool=self._pool,
            budget=self._config.budget,
            spawning=self._config.swarm if spawning is None else spawning,
            temperature=temperature,
            top_p=top_p,
            subagent_temperature=self._config.subagent_temperature,
            media=self._media,
            limits=self._config.limits,
            context=self._config.context,
            slots=self._places,
            switch=self._switch,
        )
        attempts = [self._one(task, settings, index, seed, critical_budget) for index in indices]
        return list(await asyncio.gather(*attempts))

    async def stop(self) -> None:
        """End all episodes at once: they return CANCELLED, with what there is. Later ones run again."""
        self._switch.stop()
        self._switch = StopSwitch()

    def _pool(self, trace: Trace) -> RemoteEngine:
        return self._policy if trace.role is Role.ORCHESTRATOR else self._frozen

    async def _one(self, task: Task, settings: SwarmSettings, index: int, seed: int, critical_budget: int) -> Episode:
        async with self._slots:
            episode = await run_episode(
                task, self._environment, settings, index=index, seed=seed, critical_budget=critical_budget
            )
        if any(name in episode.error for name in _LOST):
            raise EngineLost(episode.error)
        return episode
