"""Collecting episodes: the rollout side of a run - engines, workers, their restarts - behind two calls.

``sync`` hands weights to the policy engines under the next version, ``collect`` returns every episode asked for, in the
order asked. Dead engines and workers are replaced and their unfinished groups run again; since an episode is a
function of (weights, task, index, seed), running it again gives the same one. Counters always add up:
submitted == finished + failed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from envs.base import Environment, Task
from model.decoder import Weights
from model.lora import is_adapters
from parl.cluster import actor
from parl.config import Config
from rewards.budget import critical_budget
from rollouts.engine.actor import EngineActor
from rollouts.episode import Episode, EpisodeStatus
from rollouts.worker import EngineLost, RolloutWorker

_SETUP_S = 120.0
_SYNC_S = 120.0
Progress = Callable[[int, int], None]  # groups done, groups in all


class Collector:
    """The rollout side of one run. Close it when done."""

    def __init__(self, config: Config, environment: Environment, tokenizer: Path, frozen: Weights) -> None:
        self._config, self._environment, self._tokenizer = config, environment, str(tokenizer.resolve())
        self._frozen = ray.put(frozen)
        self._base = self._frozen  # what adapters are merged with
        self._policy: tuple[int, Any, Any] | None = None  # version and weights that the policy pool serves, their base
        self.restarts = 0
        self._workers: list[Any] = []
        self._engines: dict[str, list[Any]] = {}
        self._start()

    def sync(self, weights: Weights, version: int) -> float:
        """Serve ``weights``, a policy or adapters, as policy ``version`` from here on; returns the seconds it took."""
        began = time.monotonic()
        self._policy = (version, ray.put(weights), self._base if is_adapters(weights) else None)
        self._retrying(self._serve_policy)
        return time.monotonic() - began

    def collect(
        self,
        tasks: Sequence[Task],
        *,
        group_size: int,
        seed: int,
        temperature: float,
        top_p: float = 1.0,
        spawning: bool | None = None,
        progress: Progress | None = None,
        attempts: Sequence[Sequence[int]] | None = None,
        arrived: Callable[[list[Episode]], None] | None = None,
    ) -> list[Episode]:
        """``group_size`` episodes of each task, in order; ``spawning`` overrides ``rollouts.swarm``.

        ``attempts`` gives each task's attempts by number, where they are not the first ``group_size``; ``arrived`` is
        called with each group as soon as it is there.
        Raises RuntimeError past trainer.step_s, or if all failed.
        """
        settings = {"seed": seed, "temperature": temperature, "top_p": top_p, "spawning": spawning}
        numbers = attempts or [range(group_size)] * len(tasks)
        done: dict[int, list[Episode]] = {}
        deadline = time.monotonic() + self._config.trainer.step_s

        def attempt() -> None:
            missing = [i for i in range(len(tasks)) if i not in done]
            calls = {self._submit(i, tasks[i], numbers[i], settings): i for i in missing}
            while calls:
                left = deadline - time.monotonic()
                ready, _ = ray.wait(list(calls), timeout=max(left, 0.0))
                if not ready:
                    raise RuntimeError(
                        f"{len(calls)} groups unfinished at trainer.step_s={self._config.trainer.step_s}"
                    )
                for call in ready:
                    number = calls.pop(call)
                    done[number] = ray.get(call, timeout=_SETUP_S)
                    if arrived:
                        arrived(done[number])
                    if progress:
                        progress(len(done), len(tasks))

        self._retrying(attempt)
        episodes = [episode for i in range(len(tasks)) for episode in done[i]]
        if episodes and all(episode.status is EpisodeStatus.FAILED for episode in episodes):
            raise RuntimeError(f"all {len(episodes)} episodes failed, the first of: {episodes[0].error}")
        return episodes

    def statistics(self) -> dict[str, float]:
        """Engine counters, summed over the replicas of each pool."""
        totals: dict[str, float] = {}

        def ask() -> None:
            totals.clear()
            for pool, replicas in self._engines.items():
                for counters in ray.get([replica.statistics.remote() for replica in replicas], timeout=_SYNC_S):
                    for name, value in counters.items():
                        totals[f"{pool}/{name}"] = totals.get(f"{pool}/{name}", 0.0) + value

        self._retrying(ask)
        return totals | {"restarts": self.restarts}

    def close(self) -> None:
        """Stop all actors."""
        for handle in [*self._workers, *(replica for pool in self._engines.values() for replica in pool)]:
            ray.kill(handle)
        self._workers, self._engines = [], {}

    def _start(self) -> None:
        rollouts, model = self._config.rollouts, self._config.model
        counts = {"policy": rollouts.policy_engines, "frozen": rollouts.frozen_engines}
        self._engines = {
            pool: [actor(EngineActor, model, record_routes=pool == "policy", concurrency=1000) for _ in range(count)]
            for pool, count in counts.items()
        }
        arguments = (self._environment, self._tokenizer, rollouts)
        pools: dict[str, Any] = {**self._engines, "concurrency": 1000}
        pools["media"] = model.vision.limits if model.vision else None
        self._workers = [
            actor(RolloutWorker, *arguments, **pools, name=f"worker-{i}-{self.restarts}")
            for i in range(rollouts.workers)
        ]
        ray.get([worker.ready.remote() for worker in self._workers], timeout=_SETUP_S)
        self._load("frozen", 0, self._frozen)
        self._serve_policy()

    def _serve_policy(self) -> None:
        if self._policy is not None:
            self._load("policy", *self._policy)

    def _load(self, pool: str, version: int, weights: Any, base: Any = None) -> None:
        calls = [replica.update.remote(version, weights, base) for replica in self._engines[pool]]
        served = ray.get(calls, timeout=_SYNC_S)
        if any(answer != version for answer in served):
            raise RuntimeError(f"the {pool} pool serves versions {served}, not {version}")

    def _submit(self, number: int, task: Task, attempts: Sequence[int], settings: dict[str, Any]) -> Any:
        budget = critical_budget(task, self._config.rollouts.budget.critical_factor)
        worker = self._workers[number % len(self._workers)]
        return worker.run.remote(task, list(attempts), critical_budget=budget, **settings)

    def _retrying(self, act: Callable[[], None]) -> None:
        """Run ``act``; where a rollout actor died, replace all of them and run it again, within max_restarts."""
        while True:
            try:
                return act()
            except (RayActorError, RayTaskError, GetTimeoutError) as error:
                lost = not isinstance(error, RayTaskError) or isinstance(error.cause, EngineLost)
                if not lost or self.restarts >= self._config.rollouts.max_restarts:
                    raise
                self.restarts += 1
                self.close()
                self._start()
