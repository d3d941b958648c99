"""``parl eval``: n attempts at every held-out task by the policies of a run, with intervals and an account of costs.

The episodes of a policy lie in ``RUN/evals/LABEL-HASH``, where the hash changes with everything that shapes an episode
(``parl.evaluate.identity``). What is in there already is not run again, so an interrupted evaluation continues, and
more tasks or a larger n run only what is missing. Episodes that failed for the machine's reasons are tried again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from envs.base import Task
from model.files import remove_leftovers, write_text
from model.kimi.config import ModelConfig
from model.kimi.files.checkpoint import INDEX, SINGLE, load_policy
from model.kimi.files.hf_config import read_shape
from parl.cold_start.shipped import VERSION as TEXTS_VERSION
from parl.cold_start.start import check_policy_files, starting_policy
from parl.collect.collector import Collector
from parl.collect.tasks import check_tasks, held_out_tasks
from parl.config.errors import UserError
from parl.config.groups import families, task_groups
from parl.config.schema import Config
from parl.episodes.stores import readable
from parl.evaluate.chat_model import ChatCollector, Served, find_model, is_url, used, vocabulary
from parl.evaluate.identity import EFFECTS, Effect, description, identity, policy_digest, policy_vocabulary
from parl.evaluate.measures import Sample, attempt, estimates, groups, latest, plain
from parl.evaluate.scoring import Scoring
from parl.machine.cluster import local_ray
from parl.machine.ownership import owning
from parl.run.finish import eval_collector
from parl.track.progress import EpisodeBar
from rewards.aggregate import evaluation_table
from rollouts.engine.address import shown
from rollouts.episode import Episode
from rollouts.store.outline import Outline, read_outlines, shard_paths
from rollouts.store.store import EpisodeStore

_SHARD = 16  # episodes that a kill can cost
_RUN_DECIDES = ("max_position_embeddings", "quantize_experts")  # of a policy's shape: its weights fit either way
_SLICE = 8  # episodes handed to the workers at once, by the slots that they have


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Whom to evaluate: weights or a server's model, whether it may spawn, and where its episodes are kept.

    ``about``: a note of what made them, ``about.json`` beside them.
    """

    label: str
    folder: Path | Served
    spawning: bool
    store: Path
    about: dict[str, Any]


Collect = Callable[[list[Task], list[list[int]], Callable[[list[Episode]], None]], object]  # tasks, attempts, arrived


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
    """The evaluation as ``evals/summary.json`` holds it: by policy the means, estimates with intervals, and costs.

    ``policies`` are labels among ``cold_start``, ``cold_start_no_spawn`` (the same without the tools that spawn),
    ``trained`` and ``single_agent``; without them the trained one and,
    where there is one, the single agent. ``model`` is another policy's folder instead, or the URL of a server that
    speaks OpenAI's API (with ``model_name``), which is evaluated as a swarm and as a single agent. ``prices``: of a
    million tokens in and out. Raises UserError for mistakes.
    """
    if n < 1 or (limit is not None and limit < 1):
        raise UserError(f"--n and --limit are whole numbers of at least 1, not {n} and {limit}")
    if model_name and not is_url(model):
        raise UserError(f"--model-name {model_name} is for servers: also give --model URL")
    check_tasks(config)
    tasks = held_out_tasks(config)[:limit]
    if is_url(model):
        if policies:
            raise UserError(
                f"--policy {', '.join(policies)} names policies of the run: leave it out with --model"
                f" {shown(str(model))}"
            )
        chosen = _served(config, find_model(config, str(model), model_name), single_agent)
        run = _run_served
    else:
        chosen = _local(config, Path(model) if model else None, single_agent, policies)
        run = _run_local
    folder = config.run_dir / "evals"
    with readable(), ExitStack() as stack:
        stack.enter_context(owning(folder, "an evaluation", "wait for it"))  # of one the summary is that of the last
        for policy in chosen:
            stack.enter_context(owning(policy.store, "an evaluation", "wait for it, or evaluate another policy"))
            remove_leftovers(policy.store)
            write_text(policy.store / "about.json", json.dumps(policy.about, indent=1) + "\n")
        todo = {policy.label: _missing(_stored(policy, tasks, n), tasks, n) for policy in chosen}
        if any(todo.values()):
            run(config, chosen, tasks, todo)
        measured = _measure(config, chosen, tasks, n, prices)
        settings = {"n": n, "tasks": len(tasks), "seed": config.eval.seed, "split": config.eval.split}
        result = settings | {"policies": measured}
        write_text(folder / "summary.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def _local(config: Config, model: Path | None, single_agent: bool, policies: Sequence[str]) -> list[Policy]:
    folders = _folders(config, model, single_agent, policies)
    cold = starting_policy(config)
    for folder, _ in folders.values():
        if folder and policy_vocabulary(folder) != policy_vocabulary(cold):
            raise UserError(
                f"{folder} has another vocabulary than the run, whose sub-agents it speaks to ({cold}): evaluate it"
                f" with the override model.init={folder} and --policy cold_start"
            )
    return [_policy(config, cold, label, folder or cold, spawns) for label, (folder, spawns) in folders.items()]


def _folders(
    config: Config, model: Path | None, single_agent: bool, labels: Sequence[str]
) -> dict[str, tuple[Path | None, bool]]:
    """Label -> (folder, None for the cold start's; whether it may spawn)."""
    swarm = config.rollouts.swarm
    known: dict[str, tuple[Path | None, bool]] = {
        "cold_start": (None, swarm),
        "cold_start_no_spawn": (None, False),
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
        if folder := known[label][0]:
            _check_policy(config, folder)
    return {label: known[label] for label in dict.fromkeys(labels)}


def _complete(folder: Path) -> bool:
    return (folder / SINGLE).exists()


def _check_policy(config: Config, folder: Path) -> None:
    """UserError unless ``folder`` holds a whole policy of the shape that the configuration's engines are built for."""
    if not _complete(folder):
        if (folder / INDEX).exists():
            raise UserError(
                f"{folder} is a checkpoint in several files: evaluate it as its own run's start, with the override"
                f" model.init={folder} and --policy cold_start"
            )
        raise UserError(f"no policy in {folder}: train it first (parl train), or name another folder with --model")
    try:
        shape = read_shape(folder)
        policy_vocabulary(folder)
    except (ValueError, FileNotFoundError) as error:
        raise UserError(f"{error}; a policy is weights, config.json and tokenizer in one folder") from None
    check_policy_files(folder, "train it again (parl train --resume, once the folder is gone), or name another")
    wanted = config.model.shape
    for name in ModelConfig.model_fields:
        found, given = getattr(shape, name), getattr(wanted, name)
        if found != given and EFFECTS.get(f"model.{name}") is not Effect.NONE and name not in _RUN_DECIDES:
            raise UserError(
                f"{folder} has {name}={found}, but model.{name}={given}: evaluate it under the configuration that it"
                f" was trained with, or with the override model.init={folder} and --policy cold_start"
            )


def _policy(config: Config, cold: Path, label: str, folder: Path, spawning: bool) -> Policy:
    subagents = config.rollouts.subagent_policy or cold
    weights = {"policy": policy_digest(folder), "subagents": policy_digest(subagents)}
    parts = description(config, weights, spawning=spawning, chat=False)
    about = _about(config, parts, {"policy": str(folder), "spawning": spawning, "weights": weights})
    return Policy(label=label, folder=folder, spawning=spawning, store=_store(config, label, parts), about=about)


def _served(config: Config, served: Served, single_agent: bool) -> list[Policy]:
    """The model of a server as ``swarm``, where sub-agents are on, and as ``single_agent``."""
    server = {"url": served.url, "model": served.name}
    chosen = []
    for label in ("swarm", "single_agent") if config.rollouts.swarm and not single_agent else ("single_agent",):
        spawning = label == "swarm"
        # what its text is counted in is made from the world's texts
        parts = description(config, {**server, "texts": str(TEXTS_VERSION)}, spawning=spawning, chat=True)
        store, about = _store(config, label, parts), _about(config, parts, {**server, "spawning": spawning})
        chosen.append(Policy(label=label, folder=served, spawning=spawning, store=store, about=about))
    return chosen


def _store(config: Config, label: str, parts: dict[str, Any]) -> Path:
    """The folder of a policy's episodes."""
    return config.run_dir / "evals" / f"{label}-{identity(parts)}"


def _about(config: Config, parts: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """A note of what made a policy's episodes."""
    evaluation = config.eval
    sampling = {"seed": evaluation.seed, "temperature": evaluation.temperature, "top_p": evaluation.top_p}
    return about | sampling | {"identity": parts}


def _stored(policy: Policy, tasks: Sequence[Task], n: int, *, texts: bool = False) -> dict[tuple[str, int], Outline]:
    """What the store holds of these tasks' first ``n`` attempts; ``texts``: with what was said in them."""
    wanted = {task.key for task in tasks}
    found = latest(read_outlines(shard_paths(policy.store, policy.label), texts=texts))
    return {(task, index): outline for (task, index), outline in found.items() if task in wanted and index < n}


def _missing(found: dict[tuple[str, int], Outline], tasks: Sequence[Task], n: int) -> dict[int, list[int]]:
    """Position of a task -> the attempts that are still to be run, or failed."""
    done = {key for key, outline in found.items() if not outline.episode.void}
    missing = {i: [k for k in range(n) if (task.key, k) not in done] for i, task in enumerate(tasks)}
    return {i: attempts for i, attempts in missing.items() if attempts}


Todo = dict[str, dict[int, list[int]]]  # by label: position of a task -> attempts


def _run_local(config: Config, policies: Sequence[Policy], tasks: Sequence[Task], todo: Todo) -> None:
    sampling = {"temperature": config.eval.temperature, "top_p": config.eval.top_p}
    slots = _SLICE * config.rollouts.concurrency * config.rollouts.workers
    with local_ray(), eval_collector(config, starting_policy(config)) as collector:
        for policy in (policy for policy in policies if todo[policy.label]):
            assert isinstance(policy.folder, Path)
            collector.serve(load_policy(policy.folder)[0])
            settings = {"seed": config.eval.seed, "spawning": policy.spawning, **sampling}
            _run(config, partial(_collected, collector, settings), policy, tasks, todo[policy.label], slots)


def _collected(
    collector: Collector,
    settings: dict[str, Any],
    tasks: list[Task],
    attempts: list[list[int]],
    arrived: Callable[[list[Episode]], None],
) -> None:
    collector.collect(tasks, group_size=1, attempts=attempts, arrived=arrived, **settings)


def _run_served(config: Config, policies: Sequence[Policy], tasks: Sequence[Task], todo: Todo) -> None:
    tokenizer = vocabulary(config)
    slots = _SLICE * config.rollouts.concurrency
    for policy in (policy for policy in policies if todo[policy.label]):
        assert isinstance(policy.folder, Served)
        with ChatCollector(config, policy.folder, tokenizer, policy.store, spawning=policy.spawning) as collector:
            _run(config, collector.collect, policy, tasks, todo[policy.label], slots)


def _run(
    config: Config,
    collect: Collect,
    policy: Policy,
    tasks: Sequence[Task],
    todo: dict[int, list[int]],
    slots: int,
) -> None:
    """Run what is missing, about ``slots`` episodes at once; every few a shard, so that little is lost to a kill."""
    scoring = Scoring(reward=config.rewards, steps=config.trainer.steps)
    with _Shards(policy, scoring) as shards, EpisodeBar(policy.label, sum(map(len, todo.values()))) as bar:

        def arrived(episodes: list[Episode]) -> None:
            shards.add(episodes)
            bar.advance(len(episodes))

        for part in _slices(todo, slots):
            collect([tasks[i] for i in part], list(part.values()), arrived)


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


def _measure(
    config: Config,
    policies: Sequence[Policy],
    tasks: Sequence[Task],
    n: int,
    prices: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """The numbers of each policy, all computed from its store."""
    scoring = Scoring(reward=config.rewards, steps=config.trainer.steps)
    known = task_groups(config)
    episodes: dict[str, list[Episode]] = {}
    samples: dict[str, Sample] = {}
    for policy in policies:
        found = _stored(policy, tasks, n, texts=config.rewards.texts)
        ordered = [found[task.key, k] for task in tasks for k in range(n)]
        for outline in ordered:
            scoring.score_held_out(outline.episode)
        episodes[policy.label] = [outline.episode for outline in ordered]
        samples[policy.label] = Sample(policy.label, map(attempt, ordered), families(known))
    by_group = groups(list(samples.values()))
    accounts = {policy.label: account(samples[policy.label]) for policy in policies}
    for policy in policies:
        if isinstance(policy.folder, Served):
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


def account(sample: Sample) -> dict[str, Any]:
    """What all attempts together cost in tokens, and what one solved task cost; None where none was solved."""
    tries = [one for attempts in sample.by_task.values() for one in attempts]
    sums = {name: sum(getattr(one, name) for one in tries) for name in _TOKENS}
    solved = sum(one.success for one in tries)
    return sums | {"solved": solved, "sampled_tokens_per_solved": sums["sampled_tokens"] / solved if solved else None}


def cost(sums: dict[str, Any], prices: tuple[float, float]) -> dict[str, Any]:
    """What an account comes to at ``prices`` of a million tokens in and out, and what one solved task cost.

    By the server's count of tokens where there is one, else by ours, each call's whole context counted.
    """
    usage = sums.get("usage")
    tokens = (usage["prompt_tokens"], usage["completion_tokens"]) if usage else None
    tokens = tokens or (sums["prompt_tokens"], sums["sampled_tokens"])
    total = sum(price * count for price, count in zip(prices, tokens, strict=True)) / 1e6
    per_solved = total / sums["solved"] if sums["solved"] else None
    return {"price_in": prices[0], "price_out": prices[1], "total": total, "per_solved": per_solved}


_TOKENS = ("sampled_tokens", "prompt_tokens", "new_prompt_tokens")
