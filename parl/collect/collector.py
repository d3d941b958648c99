"""The rollout side of a run: engines, workers and their restarts, behind two calls.

``sync`` sends weights to the policy engines under the next version (``parl.collect.weight_sync``);
``collect`` returns all episodes in the requested order. Dead and hung engines and workers are replaced and
their unfinished groups run again; an episode is a function of (weights, task, index, seed), so it comes out
the same. ``begin``, ``suspend`` and ``snapshots`` are for episodes that run beside the learner
(``parl.collect.stream``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from envs.base import Task
from model.decoder import Weights
from parl.collect.pools import RolloutSide, change, engine_kinds, pool_sizes
from parl.collect.rerun import Group, StepFailed, whole
from parl.collect.roster import Roster
from parl.collect.weight_sync import SYNC_S, PoolWeights
from parl.errors import MachineError
from parl.machine.cluster import actor, stop
from parl.machine.faults import curable, named, said, struck
from parl.machine.nodes.files import carried
from parl.machine.nodes.place import doubt, keep_near
from parl.machine.watch import WATCH
from parl.shown.terminal import echo
from rollouts.engine.actor import EngineActor
from rollouts.engine.base import Place
from rollouts.episode import Episode
from rollouts.swarm.budget import critical_budget
from rollouts.swarm.partial import Outcome
from rollouts.worker import RolloutWorker

_SETUP_S = 120.0
Progress = Callable[[int, int], None]  # groups done, total groups


class Collector:
    """The rollout side of one run. Close it after use."""

    _roster: Roster | None = None  # of the policy's servers
    _found: tuple[str, ...] | None = None  # the servers that the last look found, until they are in use

    def __init__(self, side: RolloutSide, tokenizer: Path, frozen: Weights, kept: Path | None = None) -> None:
        """``frozen``: the starting policy; ``kept``: folder for refreshed sub-agents' weights."""
        self._side, self._rollouts, self._tokenizer = side, side.rollouts, carried(tokenizer)
        self._kinds = engine_kinds(side.rollouts)
        self._weights = PoolWeights(side, tokenizer, frozen, kept)
        self._roster = Roster(side.rollouts.http) if self._kinds["policy"].servers else None
        self.restarts = 0
        self._workers: list[Any] = []
        self._engines: dict[str, list[Any]] = {}
        if side.scoring.judged:  # the verdicts are in the run's folder
            keep_near("worker")
        self.retrying(lambda: None)  # starts them

    def sync(self, weights: Weights, version: int, *, in_flight: bool = False) -> float:
        """Serve ``weights``, a policy or adapters, as policy ``version``; returns the seconds it took.

        ``in_flight``: also while episodes run, which then continue under the new weights.
        """
        began = time.monotonic()
        if self._weights.take(weights, version):
            self.retrying(self._serve_frozen)
        if self._rollouts.rebalance:
            self.retrying(self._rebalance)
        if not in_flight:
            self.servers_change()
        self.retrying(self._change_servers)
        self.retrying(lambda: self._serve_policy(in_flight))
        if self._roster:
            self._roster.settle()
        return time.monotonic() - began

    def servers_change(self) -> bool:
        """Look at the servers: whether the next :meth:`sync` takes in or leaves out one. No episode may run then.

        A change that comes later waits for the next look.
        """
        self._found = self._roster.look() if self._roster else None
        return self._roster is not None and self._found != self._roster.used

    @property
    def servers(self) -> int:
        """Servers of the policy in use; 0 with other engines."""
        return len(self._roster.used) if self._roster else 0

    def serve(self, weights: Weights) -> None:
        """Serve another policy for evaluation, as version 0; refreshed sub-agents are that policy, too."""
        self._weights.forget()
        self.sync(weights, 0)

    def begin(
        self, number: int, task: Task, outcomes: list[Outcome], *, pause_s: float = 0.0, slack: float = 1.0
    ) -> Any:
        """Start a worker on group ``number`` from ``outcomes``, after ``pause_s``; returns a reference to the
        results. ``slack``: of its critical budget.
        """
        return self._workers[number % len(self._workers)].advance.remote(
            number,
            task,
            outcomes,
            pause_s=pause_s,
            seed=self._side.seed,
            temperature=self._rollouts.temperature,
            critical_budget=critical_budget(task, self._rollouts.budget, slack),
        )

    def suspend(self) -> None:
        """Halt all groups of :meth:`begin`: their references return the outcomes so far."""
        deadline = max(self._rollouts.budget.call_s, self._rollouts.score_deadline_s) + _SETUP_S
        ray.get([worker.suspend.remote() for worker in self._workers], timeout=deadline)

    def snapshots(self) -> dict[int, bytes]:
        """Current outcomes, pickled, of all running groups."""
        found = ray.get([worker.snapshot.remote() for worker in self._workers], timeout=SYNC_S)
        return {number: data for part in found for number, data in part.items()}

    def collect(
        self,
        tasks: Sequence[Task],
        *,
        group_size: int,
        seed: int,
        temperature: float,
        top_p: float = 1.0,
        spawning: bool | None = None,
        slack: float = 1.0,
        progress: Progress | None = None,
        attempts: Sequence[Sequence[int]] | None = None,
        arrived: Callable[[list[Episode]], None] | None = None,
    ) -> list[Episode]:
        """``group_size`` episodes of each task, in order; ``spawning`` overrides ``rollouts.swarm``.

        ``slack``: factor of the tasks' critical budgets (``rollouts.budget.curriculum``).
        ``attempts``: each task's attempts by number, instead of the first ``group_size``. ``arrived`` is
        called with each finished group. Failed episodes run again (``parl.collect.rerun``). Raises StepFailed
        past trainer.step_s, if all failed, or if the machine keeps some from finishing.
        """
        settings = {"seed": seed, "temperature": temperature, "top_p": top_p, "spawning": spawning}
        groups = [Group(task, list(numbers)) for task, numbers in zip(tasks, attempts or [], strict=False)]
        groups = groups or [Group(task, list(range(group_size))) for task in tasks]
        calls: dict[Any, Group] = {}
        deadline = time.monotonic() + self._side.step_s

        def attempt() -> None:
            if self.restarts != began_with[0]:  # the actors were replaced: these calls will not return
                began_with[0] = self.restarts
                calls.clear()
            while waiting := [group for group in groups if group.missing]:
                for group in waiting:
                    if group not in calls.values():
                        calls[self._submit(group, groups.index(group), settings, slack)] = group
                left = deadline - time.monotonic()
                ready, _ = ray.wait(list(calls), timeout=max(left, 0.0))
                if not ready:
                    raise StepFailed(f"{len(calls)} groups unfinished at trainer.step_s={self._side.step_s}")
                for call in ready:
                    group = calls.pop(call)
                    group.take(ray.get(call, timeout=_SETUP_S))
                    if group.missing:
                        continue
                    if arrived:
                        arrived(group.episodes)
                    if progress:
                        progress(sum(not group.missing for group in groups), len(tasks))

        began_with = [self.restarts]
        self.retrying(attempt)
        return whole([episode for group in groups for episode in group.episodes])

    def statistics(self) -> dict[str, float]:
        """Engine counters, summed over the replicas of each pool."""
        totals: dict[str, float] = {}

        def ask() -> None:
            totals.clear()
            for pool, replicas in self._engines.items():
                for counters in ray.get([replica.statistics.remote() for replica in replicas], timeout=SYNC_S):
                    for name, value in counters.items():
                        totals[f"{pool}/{name}"] = totals.get(f"{pool}/{name}", 0.0) + value

        self.retrying(ask)
        return totals | {"restarts": self.restarts}

    def close(self) -> None:
        """Stop all actors, and what offers weights to servers."""
        self._stop()
        self._weights.close()

    def _stop(self) -> None:
        stop(self._actors())
        self._workers, self._engines = [], {}

    def _start(self) -> None:
        rollouts = self._rollouts
        self._engines = {pool: self._replicas(pool, count) for pool, count in pool_sizes(rollouts).items()}
        arguments = (self._side.environment, self._tokenizer, rollouts)
        pools: dict[str, Any] = {**self._engines, "concurrency": 1000}
        pools |= {"model": self._side.model.shape, "score": self._side.scoring}
        self._workers = [
            actor(
                RolloutWorker,
                *arguments,
                **pools,
                name=f"worker-{i}-{self.restarts}",
                _label=f"rollout worker {i}",
                _role="worker",
            )
            for i in range(rollouts.workers)
        ]
        ray.get([worker.ready.remote() for worker in self._workers], timeout=_SETUP_S)
        if rollouts.placement == "spread":
            calls = [worker.connect.remote(self._workers, i) for i, worker in enumerate(self._workers)]
            ray.get(calls, timeout=_SETUP_S)
        self._serve_frozen()
        self._serve_policy()

    def _replicas(self, pool: str, count: int) -> list[Any]:
        """Actors of ``pool``: one per server, or ``count`` engines."""
        if not self._kinds[pool].servers:
            urls: tuple[str, ...] = ("",) * count
        elif pool == "policy" and self._roster:
            urls = self._roster.look()
            self._roster.take(urls)
            self._found = None  # it is older
        else:
            urls = self._rollouts.http.frozen_urls
        return [self._replica(pool, number, url) for number, url in enumerate(urls)]

    def _replica(self, pool: str, number: int, url: str) -> Any:
        rollouts, kind = self._rollouts, self._kinds[pool]
        model = self._side.model.shape if pool == "policy" else self._weights.subagent_model
        place = Place(pool=pool, number=number, model=model, rollouts=rollouts, tokenizer=self._tokenizer, url=url)
        label = f"{pool} client of {url}" if url else f"{pool} engine {number}"
        return actor(EngineActor, kind, place, concurrency=1000, _label=label, _role="engine")

    def _change_servers(self) -> None:
        """Take in the policy's servers that the last look found new or back, and leave out those that went."""
        roster, found = self._roster, self._found
        if roster is None or found is None or found == roster.used:
            return
        kept = dict(zip(roster.used, self._engines["policy"], strict=True))
        roster.take(found)
        gone = [replica for url, replica in kept.items() if url not in found]
        self._engines["policy"] = [kept.get(url) or self._replica("policy", n, url) for n, url in enumerate(found)]
        self._serve_workers()
        stop(gone)

    def _actors(self) -> list[Any]:
        return [*self._workers, *(replica for pool in self._engines.values() for replica in pool)]

    def _serve_frozen(self) -> None:
        self._weights.send("frozen", self._engines["frozen"])

    def _rebalance(self) -> None:
        """Let one engine change to the busier pool if due; its weights come with the next sync."""
        loads = {"policy": 0.0, "frozen": 0.0}
        for own in ray.get([worker.loads.remote() for worker in self._workers], timeout=SYNC_S):
            loads = {pool: load + own[pool] for pool, load in loads.items()}
        moved = change(loads, {pool: len(replicas) for pool, replicas in self._engines.items()})
        if moved is None:
            return
        giver, taker = moved
        replica = self._engines[giver].pop()
        self._engines[taker].append(replica)
        ray.get(replica.assign.remote(taker), timeout=SYNC_S)
        if taker == "frozen":
            self._serve_frozen()
        self._serve_workers()

    def _serve_workers(self) -> None:
        """The workers use the pools as they are now; no episode may run."""
        calls = [worker.serve.remote(self._engines["policy"], self._engines["frozen"]) for worker in self._workers]
        ray.get(calls, timeout=SYNC_S)

    def _serve_policy(self, in_flight: bool = False) -> None:
        self._weights.send("policy", self._engines["policy"], in_flight=in_flight)

    def _submit(self, group: Group, number: int, settings: dict[str, Any], slack: float) -> Any:
        budget = critical_budget(group.task, self._rollouts.budget, slack)
        worker = self._workers[number % len(self._workers)]
        more = settings | {"critical_budget": budget, "pause_s": group.pause_s}
        return worker.run.remote(group.task, group.missing, **more)

    def retrying(self, act: Callable[[], None]) -> None:
        """Run ``act``; if a rollout actor is lost, replace all of them and run it again, up to max_restarts.

        Each loss is reported. Raises MachineError (ActorLost) beyond that, and for errors that a restart
        cannot fix.
        """
        while True:
            try:
                if not self._workers:  # handles a loss during the replacement too
                    self._start()
                return act()
            except RayError as error:
                self._replace(error)

    def _replace(self, error: RayError) -> None:
        """Report the loss and end all actors, so that new ones are started; raises if a restart cannot help."""
        if not curable(error):
            raised = named(error)
            raise raised from (None if raised is error else error)
        limit, who = self._rollouts.max_restarts, struck(self._actors()) or said(error)
        if self.restarts >= limit:
            raise MachineError(f"{who}; rollouts.max_restarts={limit} is used up, nothing of this step was trained")
        self.restarts += 1
        doubt(WATCH.silent_hosts(self._actors()))
        echo(f"{who}; rollout actors are started again ({self.restarts} of {limit})", err=True)
        self._stop()
