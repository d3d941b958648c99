"""The evaluation: n attempts at every held-out task by some policies, with intervals and costs.

Used by a run's end, ``parl eval`` and models of chat servers. Episodes in a policy's store are not run again,
so an interrupted evaluation continues, and more tasks or a larger n run only what is missing. Episodes with
machine faults are tried again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from envs.base import Environment, Task, TaskGroup
from model.chat.base import ChatFormat
from model.family import family_of
from model.files import remove_leftovers, write_text
from model.policy_files import load_policy
from parl.cold_start.starting_policy import starting_policy
from parl.collect.collector import Collector
from parl.collect.free_running import free_running
from parl.collect.pools import RolloutSide, scoring_of, tell_judge
from parl.collect.tasks import Tasks, check_tasks
from parl.config.family import chat_format
from parl.config.schema import Config, EvalConfig
from parl.episodes.groups import families
from parl.episodes.stores import readable
from parl.errors import UserError
from parl.evaluate.chat_model import ChatCollector, Served, find_model, is_url, used
from parl.evaluate.measures import Sample, account, attempt, cost, estimates, groups, latest, plain
from parl.evaluate.policies import Policy, local_policies, served_policies
from parl.evaluate.scoring import Scoring
from parl.machine.cluster import local_ray, use
from parl.machine.nodes.check import data_paths
from parl.machine.ownership import owning
from parl.track.progress import EpisodeBar
from rewards.aggregate import evaluation_table
from rollouts.config import RolloutsConfig
from rollouts.engine.address import shown
from rollouts.episode import Episode
from rollouts.store.outline import Outline, read_outlines, shard_paths
from rollouts.store.store import EpisodeStore
from rollouts.swarm.scoring import ScoreEpisode

_SHARD = 16  # episodes lost at most by a kill
_SLICE = 8  # episodes per slot given to the workers at once

Collect = Callable[..., object]  # takes tasks, attempts, arrived


class Bar(Protocol):
    """Shows the progress of a policy's episodes."""

    def advance(self, count: int) -> None:
        """Add ``count`` finished episodes."""
        ...


ShowBar = Callable[[str, int], AbstractContextManager[Bar]]  # label, episodes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """The first ``n`` attempts at ``tasks`` for each policy, and how they are scored and shown."""

    tasks: Sequence[Task]
    n: int
    scoring: Scoring
    bar: ShowBar = EpisodeBar

    def todo(self, policy: Policy) -> dict[int, list[int]]:
        """Position of a task -> attempts missing or failed."""
        return _missing(_stored(policy, self.tasks, self.n), self.tasks, self.n)

    def run(self, policy: Policy, collect: Collect, slots: int) -> None:
        """Run what is missing, about ``slots`` episodes at once, stored in small shards."""
        todo = self.todo(policy)
        count = sum(map(len, todo.values()))
        with _Shards(policy, self.scoring) as shards, self.bar(policy.label, count) as shown_bar:

            def arrived(episodes: list[Episode]) -> None:
                shards.add(episodes)
                shown_bar.advance(len(episodes))

            for part in _slices(todo, slots):
                collect([self.tasks[i] for i in part], attempts=list(part.values()), arrived=arrived)


def run_eval(
    config: Config,
    *,
    n: int = 1,
    limit: int | None = None,
    model: Path | str | None = None,
    model_name: str | None = None,
    single_agent: bool = False,
    policies: Sequence[str] = (),
    prices: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Evaluate; returns ``evals/summary.json``: by policy means, estimates with intervals, and costs.

    ``policies``: labels among ``cold_start``, ``cold_start_no_spawn`` (without the spawning tools),
    ``trained`` and ``single_agent``; by default the trained one and, if there is one, the single agent.
    ``model``: another policy's folder instead, or the URL of a server with OpenAI's API (with
    ``model_name``), evaluated as swarm and as single agent. ``prices``: per million tokens in and out. Raises
    UserError for mistakes.
    """
    if n < 1 or (limit is not None and limit < 1):
        raise UserError(f"--n and --limit are whole numbers of at least 1, not {n} and {limit}")
    if model_name and not is_url(model):
        raise UserError(f"--model-name {model_name} is for servers: also give --model URL")
    use(config.cluster, data_paths(config.envs.config))
    tasks = check_tasks(config)
    if is_url(model):
        if policies:
            raise UserError(
                f"--policy {', '.join(policies)} names policies of the run: leave it out with --model"
                f" {shown(str(model))}"
            )
        if tasks.environment.drives:
            raise UserError(f"--model {shown(str(model))}: envs.name={config.envs.name} runs programs: give it to them")
        served = find_model(str(model), model_name, pictures=config.envs.config.pictures)
        chosen = served_policies(config, served, single_agent)
    else:
        chosen = local_policies(config, Path(model) if model else None, single_agent, policies)
    return evaluate(config, chosen, tasks, n=n, limit=limit, prices=prices)


def evaluate(
    config: Config,
    policies: Sequence[Policy],
    tasks: Tasks,
    *,
    n: int = 1,
    limit: int | None = None,
    prices: tuple[float, float] | None = None,
    bar: ShowBar = EpisodeBar,
) -> dict[str, Any]:
    """Run what the policies' stores lack and measure all; written to ``RUN/evals/summary.json`` and returned.

    ``policies`` are all of weights, or all of a chat server's model. ``prices`` as in :func:`run_eval`.
    """
    scoring = Scoring(reward=config.rewards, steps=config.trainer.steps)
    asked = _Asked(tasks=tasks.held_out()[:limit], n=n, scoring=scoring, bar=bar)
    folder = config.run_dir / "evals"
    with readable(), ExitStack() as stack:
        stack.enter_context(owning(folder, "an evaluation", "wait for it"))  # one summary
        for policy in policies:
            stack.enter_context(owning(policy.store, "an evaluation", "wait for it, or evaluate another policy"))
            remove_leftovers(policy.store)
            write_text(policy.store / "about.json", json.dumps(policy.about, indent=1) + "\n")
        if missing := [policy for policy in policies if asked.todo(policy)]:
            if isinstance(policies[0].source, Served):
                score = scoring_of(config.rewards, config.run_dir)
                chat = chat_format(config.model, config.rollouts, tasks.context.tokenizer)
                for policy in missing:
                    _run_served(policy, asked, config.envs.build(), chat, config.rollouts, config.eval, score)
            else:
                _run_local(
                    missing,
                    asked,
                    RolloutSide.of(config),
                    starting_policy(config, check=free_running(config)),
                    config.eval,
                )
        measured = _measure(policies, asked, tasks.environment.groups, prices)
        settings = {"n": n, "tasks": len(asked.tasks), "seed": config.eval.seed, "split": config.eval.split}
        result = settings | {"policies": measured}
        write_text(folder / "summary.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    tell_judge(config.rewards, config.run_dir)
    return result


def _stored(policy: Policy, tasks: Sequence[Task], n: int, *, texts: bool = False) -> dict[tuple[str, int], Outline]:
    """Stored episodes of these tasks' first ``n`` attempts; ``texts``: with their texts."""
    wanted = {task.key for task in tasks}
    found = latest(read_outlines(shard_paths(policy.store, policy.label), texts=texts))
    return {(task, index): outline for (task, index), outline in found.items() if task in wanted and index < n}


def _missing(found: dict[tuple[str, int], Outline], tasks: Sequence[Task], n: int) -> dict[int, list[int]]:
    """Position of a task -> attempts missing or failed."""
    done = {key for key, outline in found.items() if not outline.episode.void}
    missing = {i: [k for k in range(n) if (task.key, k) not in done] for i, task in enumerate(tasks)}
    return {i: attempts for i, attempts in missing.items() if attempts}


def _run_local(
    policies: Sequence[Policy], asked: _Asked, side: RolloutSide, cold: Path, evaluation: EvalConfig
) -> None:
    """Engines and workers for any number of policies; frozen sub-agents are the cold start."""
    slots = _SLICE * side.rollouts.concurrency * side.rollouts.workers
    family = family_of(side.model)
    sampling = {"seed": evaluation.seed, "temperature": evaluation.temperature, "top_p": evaluation.top_p}
    with local_ray():
        collector = Collector(side, cold, load_policy(cold, family)[0])
        try:
            for policy in policies:
                assert isinstance(policy.source, Path)
                collector.serve(load_policy(policy.source, family)[0])
                collect = partial(collector.collect, group_size=1, spawning=policy.spawning, **sampling)
                asked.run(policy, collect, slots)
        finally:
            collector.close()


def _run_served(
    policy: Policy,
    asked: _Asked,
    environment: Environment,
    chat: ChatFormat,
    rollouts: RolloutsConfig,
    evaluation: EvalConfig,
    score: ScoreEpisode,
) -> None:
    assert isinstance(policy.source, Served)
    settings = {"rollouts": rollouts, "evaluation": evaluation, "spawning": policy.spawning, "score": score}
    with ChatCollector(policy.source, policy.store, environment, chat, **settings) as collector:
        asked.run(policy, collector.collect, _SLICE * rollouts.concurrency)


def _slices(todo: dict[int, list[int]], episodes: int) -> list[dict[int, list[int]]]:
    """``todo`` in parts of about ``episodes``: each has its own deadline of a step."""
    parts: list[dict[int, list[int]]] = [{}]
    for task, attempts in todo.items():
        if parts[-1] and sum(map(len, parts[-1].values())) + len(attempts) > episodes:
            parts.append({})
        parts[-1][task] = attempts
    return parts


class _Shards:
    """Writes scored episodes to a policy's store a few at a time, and the rest at the end of the block."""

    def __init__(self, policy: Policy, scoring: Scoring) -> None:
        self._store, self._label, self._scoring = EpisodeStore(policy.store), policy.label, scoring
        self._next = max(self._store.steps(policy.label), default=-1) + 1
        self._waiting: list[Episode] = []

    def add(self, episodes: list[Episode]) -> None:
        self._waiting += episodes
        if len(self._waiting) >= _SHARD:
            self._write()

    def _write(self) -> None:
        for episode in self._waiting:
            self._scoring.score_held_out(episode)
        self._store.write(self._next, self._waiting, policy_version=0, kind=self._label)
        self._next, self._waiting = self._next + 1, []

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        if self._waiting:
            self._write()


def _measure(
    policies: Sequence[Policy], asked: _Asked, known: Sequence[TaskGroup], prices: tuple[float, float] | None
) -> dict[str, Any]:
    """The numbers of each policy, computed from its store; ``known``: its groups of tasks."""
    tasks, n = asked.tasks, asked.n
    episodes: dict[str, list[Episode]] = {}
    samples: dict[str, Sample] = {}
    for policy in policies:
        found = _stored(policy, tasks, n, texts=asked.scoring.reward.texts)
        ordered = [found[task.key, k] for task in tasks for k in range(n)]
        for outline in ordered:
            asked.scoring.score_held_out(outline.episode)
        episodes[policy.label] = [outline.episode for outline in ordered]
        samples[policy.label] = Sample(policy.label, map(attempt, ordered), families(known))
    by_group = groups(list(samples.values()))
    accounts = {policy.label: account(samples[policy.label]) for policy in policies}
    for policy in policies:
        if isinstance(policy.source, Served):
            accounts[policy.label]["usage"] = used(policy.store, tasks, n)
        if prices:
            accounts[policy.label]["cost"] = cost(accounts[policy.label], prices)
    return {
        policy.label: {
            "store": str(policy.store),
            "means": evaluation_table(episodes[policy.label], known),
            "failed": sum(episode.void for episode in episodes[policy.label]),
            "account": accounts[policy.label],
            "estimates": {
                name: plain(estimates(samples[policy.label].of(belongs), n)) for name, belongs in by_group.items()
            },
        }
        for policy in policies
    }
