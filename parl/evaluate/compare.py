"""``parl compare``: policies on the same tasks, in pairs, from stored episodes.

Differences are taken per task and bootstrapped over tasks (``parl.evaluate.statistics``), so a task's
difficulty cancels. Scores and costs are computed from the episodes again; no configuration is needed. Modelled
seconds are those of the runs' ``rewards.latency`` if all runs have one, else of its defaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from parl.config.runs import named_path, run_config
from parl.episodes.groups import families, run_groups
from parl.episodes.stores import Store, final_stores, find_stores, kind_of, readable
from parl.errors import UserError
from parl.evaluate.measures import COSTS, SCORE, Attempt, Sample, attempt, groups, latest
from parl.evaluate.scoring import TRAIN
from parl.evaluate.statistics import Bootstrap
from rewards.base import Reward
from rewards.score import score_episode
from rollouts.costs import LatencyModel
from rollouts.store.outline import Outline

SCORES = ("score", "success", "spawned")
_TRAINED = "trained"
PARETO = ("critical_steps", "sampled_tokens")  # traded against score


def load_samples(given: Sequence[str], *, of_one_run: bool = False) -> list[Sample]:
    """The policies named by ``PATH`` or ``PATH:LABEL``, each once; UserError if there are none.

    A run stands for its last ``parl eval``, or for the evaluation at its end; a store's folder for every kind
    of shard in it. ``of_one_run``: of two evaluations the one with several policies.
    """
    found: list[tuple[str, Store, str]] = []
    for text in given:
        path, label = _split(text)
        stores = _evaluations(path, alone=of_one_run and label is None)
        kinds = [(store, kind) for store in stores for kind in sorted({kind_of(shard) for shard in store.shards})]
        chosen = [(store, kind) for store, kind in kinds if label in (None, kind)]
        if not chosen:
            there = ", ".join(sorted({kind for _, kind in kinds}))
            raise UserError(f"{text}: no episodes of {label!r} in {path}; there are: {there}")
        found += [(str(path), store, kind) for store, kind in chosen]
    names = [kind for _, _, kind in found]
    labels = [kind if names.count(kind) == 1 else f"{_short(store)}:{kind}" for _, store, kind in found]
    earlier = [labels[:i].count(label) for i, label in enumerate(labels)]
    labels = [f"{label} ({count + 1})" if count else label for label, count in zip(labels, earlier, strict=True)]
    reward = Reward(name="answer", latency=_latency({store.run for _, store, _ in found if store.run}))
    with readable():
        return [
            Sample(label, _attempts(store, kind, reward), families(run_groups(store.run)))
            for label, (_, store, kind) in zip(labels, found, strict=True)
        ]


def compare(samples: Sequence[Sample], *, seed: int = 0, of_one_run: bool = False) -> dict[str, Any]:
    """Compare ``samples``: each against the first, task by task, and all of them as trade-offs.

    ``of_one_run``: the trained policy against each other one instead. Values are numbers, lists, objects and
    :class:`parl.evaluate.statistics.Interval`; ``measures.plain`` makes JSON.
    """
    if len(samples) < 2:
        only = f", there is only {samples[0].label}" if samples else ""
        raise UserError(f"a comparison needs two policies{only}: name another run, or PATH:LABEL")
    trained = next((sample for sample in samples if sample.label == _TRAINED), None) if of_one_run else None
    if trained:
        pairs = [(other, trained) for other in reversed(samples) if other is not trained]  # single agent, cold start
    else:
        pairs = [(samples[0], other) for other in samples[1:]]
    return {
        "policies": [sample.label for sample in samples],
        "reference": trained.label if trained else samples[0].label,
        "pairs": [compare_pair(a, b, seed=seed) for a, b in pairs],
        "pareto": pareto(samples, seed=seed),
    }


def compare_pair(a: Sample, b: Sample, *, seed: int = 0) -> dict[str, Any]:
    """``b`` against ``a`` on their common tasks, by group and by task."""
    a, b = _common([a, b])
    result = {"a": a.label, "b": b.label, "tasks": len(a.by_task), "attempts": [a.attempts, b.attempts]}
    result["groups"] = {name: _paired(a.of(belongs), b.of(belongs), seed) for name, belongs in groups([a, b]).items()}
    scored = a.has("score") and b.has("score")
    rows = [_task_row(a.by_task[key], b.by_task[key]) for key in a.by_task if scored]
    rows.sort(key=lambda row: (abs(row["difference"]), row["task"]), reverse=True)
    result["regressions"] = [row for row in rows if row["difference"] < 0]
    result["improvements"] = [row for row in rows if row["difference"] > 0]
    return result


def pareto(samples: Sequence[Sample], *, seed: int = 0) -> list[dict[str, Any]]:
    """Score, critical steps and sampled tokens of each policy on the common tasks.

    ``front``: no other policy is at least as good in all three and better in one. Empty without scores.
    """
    samples = _common(samples)
    if not all(sample.has("score") for sample in samples):
        return []
    boot = Bootstrap(len(samples[0].by_task), seed=seed)
    rows = []
    for sample in samples:
        row = {"policy": sample.label, "score": boot.mean(sample.means("score"), bounds=sample.range)}
        rows.append(row | {name: boot.mean(sample.means(name)) for name in PARETO})
    points = [(-row["score"].value, *(row[name].value for name in PARETO)) for row in rows]
    for row, point in zip(rows, points, strict=True):
        beaten = any(other != point and all(x <= y for x, y in zip(other, point, strict=True)) for other in points)
        row["front"] = not beaten
    return rows


def _split(text: str) -> tuple[Path, str | None]:
    path, colon, label = text.rpartition(":")
    return (Path(path), label) if colon and not Path(text).exists() else (Path(text), None)


def _evaluations(given: Path, alone: bool) -> list[Store]:
    """The stores of an evaluation: a run's last ``parl eval``, else that of its end; of any other folder all.

    ``alone``: prefer one with several policies.
    """
    path = named_path(given)
    if not (path / "config.yaml").is_file():
        return find_stores(given)
    folders, final = _last_evaluation(path), list(dict.fromkeys(final_stores(path).values()))
    if len(folders) < (2 if alone and final else 1):
        folders = final
    if not any(folder.is_dir() for folder in folders):
        raise UserError(f"{path} has not been evaluated: parl eval {path / 'config.yaml'}")
    return [store for folder in folders if folder.is_dir() for store in find_stores(folder)]


def _last_evaluation(run: Path) -> list[Path]:
    """The stores of the run's last ``parl eval``; empty without one. UserError: its summary is damaged."""
    last = run / "evals" / "summary.json"
    if not last.is_file():
        return []
    try:
        policies = json.loads(last.read_text(encoding="utf-8"))["policies"].values()
        return [run / "evals" / Path(policy["store"]).name for policy in policies]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        text = f"{last} is damaged ({type(error).__name__}: {error})"
        raise UserError(f"{text}: delete it, and the same parl eval writes it again without running anything") from None


def _short(store: Store) -> str:
    return store.run.name if store.run else store.folder.name


def _latency(runs: Iterable[Path]) -> LatencyModel:
    """The latency model of all ``runs``, or the default: seconds of two policies must mean the same."""
    models = set()
    for run in runs:
        try:
            models.add(run_config(run).rewards.latency)
        except UserError:  # damaged, or something that it names is not installed here
            return LatencyModel()
    return models.pop() if len(models) == 1 else LatencyModel()


def _attempts(store: Store, kind: str, reward: Reward) -> Iterable[Attempt]:
    """The attempts of a store; ``reward`` has no formula: answers are compared, whatever they earned."""
    outlines: Iterable[Outline] = store.outlines(texts=False, kind=kind)
    for outline in outlines if kind == TRAIN else latest(outlines).values():
        score_episode(outline.episode, reward, {})
        yield attempt(outline)


def _common(samples: Sequence[Sample]) -> list[Sample]:
    """``samples`` on their common tasks, in one order; UserError if there are none."""
    keys = [key for key in samples[0].by_task if all(key in sample.by_task for sample in samples)]
    if not keys:
        counts = ", ".join(f"{sample.label} {len(sample.by_task)}" for sample in samples)
        raise UserError(f"no task is common to all ({counts}): evaluate them with the same seed, split and world")
    return [sample.only(keys) for sample in samples]


def _paired(a: Sample, b: Sample, seed: int) -> dict[str, Any]:
    boot = Bootstrap(len(a.by_task), seed=seed)
    row: dict[str, Any] = {"tasks": len(a.by_task)}
    ranges = {"score": (min(a.range[0], b.range[0]), max(a.range[1], b.range[1]))}
    for name in (*SCORES, *COSTS):
        if not (a.has(name) and b.has(name)):
            continue
        bounds = ranges.get(name, SCORE) if name in SCORES else None
        of_a, of_b = a.means(name), b.means(name)
        row[name] = {
            "a": boot.mean(of_a, bounds=bounds),
            "b": boot.mean(of_b, bounds=bounds),
            "difference": boot.difference(of_a, of_b, bounds=bounds),
        }
        if name in COSTS:
            row[name]["ratio"] = boot.ratio(of_a, of_b)
    return row


def _task_row(of_a: list[Attempt], of_b: list[Attempt]) -> dict[str, Any]:
    steps = [[one.critical_steps for one in tries] for tries in (of_a, of_b)]
    scores = [[one.score for one in tries if one.score is not None] for tries in (of_a, of_b)]
    return {
        "task": of_a[0].task,
        "family": of_a[0].family,
        "width": of_a[0].width,
        "difference": fmean(scores[1]) - fmean(scores[0]),
        "scores": scores,
        "critical_steps": [fmean(one) for one in steps],
        "episodes": [[one.ref for one in of_a], [one.ref for one in of_b]],
    }
