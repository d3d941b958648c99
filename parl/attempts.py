"""``parl eval``: n attempts at every held-out task by the policies of a run, with intervals and an account of costs.

The episodes of a policy lie in ``RUN/evals/LABEL-HASH``, where the hash changes with everything that shapes an episode:
weights, sub-agents, vocabulary, world, budgets, temperatures, seed. What is in there already is not run again, so an
interrupted evaluation continues, and more tasks or a larger n run only what is missing. Episodes that failed for the
machine's reasons are tried again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.base import Task
from model.checkpoint import load_policy
from parl.cluster import local_ray
from parl.collect import Collector
from parl.config import Config
from parl.errors import UserError
from parl.evaluate import eval_collector
from parl.loading import config_hash
from parl.measures import Sample, attempt, estimates, groups, latest, plain
from parl.progress import EpisodeBar
from parl.scoring import Scoring
from parl.start import starting_policy
from parl.stores import readable
from parl.tasks import check_tasks, held_out_tasks
from rewards.aggregate import evaluation_table
from rollouts.episode import Episode
from rollouts.outline import Outline, read_outlines, shard_paths
from rollouts.store import EpisodeStore

_SHARD = 16  # episodes that a kill can cost
_SLICE = 8  # episodes handed to the workers at once, by the slots that they have


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Whom to evaluate: weights, whether it may spawn, and where its episodes are kept."""

    label: str
    folder: Path
    spawning: bool
    store: Path


def run_eval(
    config: Config,
    *,
    n: int = 1,
    limit: int | None = None,
    model: Path | None = None,
    single_agent: bool = False,
    policies: Sequence[str] = (),
) -> dict[str, Any]:
    """The evaluation as ``evals/summary.json`` holds it: by policy the means, estimates with intervals, and costs.

    ``policies`` are labels among ``cold_start``, ``trained`` and ``single_agent``; without them the trained one and,
    where there is one, the single agent. ``model`` is another policy's folder instead. Raises UserError for mistakes.
    """
    if n < 1 or (limit is not None and limit < 1):
        raise UserError(f"--n and --limit are whole numbers of at least 1, not {n} and {limit}")
    check_tasks(config)
    tasks = held_out_tasks(config)[:limit]
    folders = _folders(config, model, single_agent, policies)
    cold = starting_policy(config)
    chosen = [_policy(config, cold, label, folder or cold, spawns) for label, (folder, spawns) in folders.items()]
    with readable():
        todo = {policy.label: _missing(_stored(policy, tasks, n), tasks, n) for policy in chosen}
        if any(todo.values()):
            with local_ray(), eval_collector(config, cold) as collector:
                for policy in chosen:
                    _run(config, collector, policy, tasks, todo[policy.label])
        measured = _measure(config, chosen, tasks, n)
    settings = {"n": n, "tasks": len(tasks), "seed": config.eval.seed, "split": config.eval.split}
    result = settings | {"policies": measured}
    folder = config.run_dir / "evals"
    (folder / "summary.json").write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _folders(
    config: Config, model: Path | None, single_agent: bool, labels: Sequence[str]
) -> dict[str, tuple[Path | None, bool]]:
    """Label -> (folder, None for the cold start's; whether it may spawn)."""
    swarm = config.rollouts.swarm
    known: dict[str, tuple[Path | None, bool]] = {
        "cold_start": (None, swarm),
        "trained": (config.run_dir / "policy", swarm),
        "single_agent": (config.run_dir / "single_agent" / "policy", False),
    }
    if model is not None:
        known = {"model": (model, swarm and not single_agent)}
        labels = ["model"]
    elif single_agent:
        labels = ["single_agent"]
    elif not labels:
        folder = known["single_agent"][0]
        labels = ["trained", *(["single_agent"] if folder and _complete(folder) else [])]
    unknown = [label for label in labels if label not in known]
    if unknown:
        raise UserError(f"no policy is called {', '.join(unknown)}: --policy is one of {', '.join(known)}")
    for label in labels:
        folder = known[label][0]
        if folder is not None and not _complete(folder):
            raise UserError(f"no policy in {folder}: train it first (parl train), or name another folder with --model")
    return {label: known[label] for label in dict.fromkeys(labels)}


def _complete(folder: Path) -> bool:
    return (folder / "model.safetensors").exists()


def _policy(config: Config, cold: Path, label: str, folder: Path, spawning: bool) -> Policy:
    rollouts, evaluation = config.rollouts, config.eval
    weights = {"policy": _digest(folder), "subagents": _digest(config.rollouts.subagent_policy or cold)}
    sampling = (evaluation.seed, evaluation.temperature, evaluation.top_p, rollouts.subagent_temperature, spawning)
    identity = config_hash(*weights.values(), config.envs.world, rollouts.budget, *sampling)
    store = config.run_dir / "evals" / f"{label}-{identity}"
    store.mkdir(parents=True, exist_ok=True)
    about = {"policy": str(folder), "spawning": spawning, "weights": weights}
    about |= {"seed": evaluation.seed, "temperature": evaluation.temperature, "top_p": evaluation.top_p}
    (store / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    return Policy(label=label, folder=folder, spawning=spawning, store=store)


def _digest(folder: Path) -> str:
    """A hash of the policy in ``folder``, weights and vocabulary."""
    digest = hashlib.sha256()
    for name in ("model.safetensors", "tokenizer.json"):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _stored(policy: Policy, tasks: Sequence[Task], n: int) -> dict[tuple[str, int], Outline]:
    """What the store holds of these tasks' first ``n`` attempts."""
    wanted = {task.key for task in tasks}
    found = latest(read_outlines(shard_paths(policy.store, policy.label), texts=False))
    return {(task, index): outline for (task, index), outline in found.items() if task in wanted and index < n}


def _missing(found: dict[tuple[str, int], Outline], tasks: Sequence[Task], n: int) -> dict[int, list[int]]:
    """Position of a task -> the attempts that are still to be run, or failed."""
    done = {key for key, outline in found.items() if not outline.episode.void}
    missing = {i: [k for k in range(n) if (task.key, k) not in done] for i, task in enumerate(tasks)}
    return {i: attempts for i, attempts in missing.items() if attempts}


def _run(
    config: Config, collector: Collector, policy: Policy, tasks: Sequence[Task], todo: dict[int, list[int]]
) -> None:
    """Run what is missing; every few episodes a shard, so that little is lost to a kill."""
    if not todo:
        return
    collector.sync(load_policy(policy.folder)[0], 0)
    sampling = {"temperature": config.eval.temperature, "top_p": config.eval.top_p}
    settings = {"seed": config.eval.seed, "spawning": policy.spawning, **sampling}
    slots = _SLICE * config.rollouts.concurrency * config.rollouts.workers
    scoring = Scoring(rewards=config.rewards, steps=config.trainer.steps)
    with _Shards(policy, scoring) as shards, EpisodeBar(policy.label, sum(map(len, todo.values()))) as bar:

        def arrived(episodes: list[Episode]) -> None:
            shards.add(episodes)
            bar.advance(len(episodes))

        for part in _slices(todo, slots):
            asked = [tasks[i] for i in part]
            collector.collect(asked, group_size=1, attempts=list(part.values()), arrived=arrived, **settings)


def _slices(todo: dict[int, list[int]], episodes: int) -> list[dict[int, list[int]]]:
    """``todo`` in parts of about so many episodes: each has the loop's deadline of a step to itself."""
    parts: list[dict[int, list[int]]] = [{}]
    for task, attempts in todo.items():
        if parts[-1] and sum(map(len, parts[-1].values())) + len(attempts) > episodes:
            parts.append({})
        parts[-1][task] = attempts
    return parts


class _Shards:
    """Writes scored episodes to a policy's store a few at a time; what is left when the block ends, too."""

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


def _measure(config: Config, policies: Sequence[Policy], tasks: Sequence[Task], n: int) -> dict[str, Any]:
    """The numbers of each policy, all computed from its store."""
    scoring = Scoring(rewards=config.rewards, steps=config.trainer.steps)
    episodes: dict[str, list[Episode]] = {}
    samples: dict[str, Sample] = {}
    for policy in policies:
        found = _stored(policy, tasks, n)
        ordered = [found[task.key, k] for task in tasks for k in range(n)]
        for outline in ordered:
            scoring.score_held_out(outline.episode)
        episodes[policy.label] = [outline.episode for outline in ordered]
        samples[policy.label] = Sample(policy.label, map(attempt, ordered))
    by_group = groups(samples.values())
    return {
        policy.label: {
            "store": str(policy.store),
            "means": evaluation_table(episodes[policy.label]),
            "failed": sum(episode.void for episode in episodes[policy.label]),
            "account": account(samples[policy.label]),
            "estimates": {
                name: plain(estimates(samples[policy.label].of(belongs), n)) for name, belongs in by_group.items()
            },
        }
        for policy in policies
    }


def account(sample: Sample) -> dict[str, Any]:
    """What all attempts together cost in tokens, and what one solved task cost; None where none was solved."""
    tries = [one for attempts in sample.by_task.values() for one in attempts]
    sums = {name: sum(getattr(one, name) for one in tries) for name in _TOKENS}
    solved = sum(one.success for one in tries)
    return sums | {"solved": solved, "sampled_tokens_per_solved": sums["sampled_tokens"] / solved if solved else None}


_TOKENS = ("sampled_tokens", "prompt_tokens", "new_prompt_tokens")
