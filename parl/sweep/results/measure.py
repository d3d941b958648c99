"""The numbers of a cell's episodes, by task, read from its store. No torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from parl.episodes.stores import readable
from parl.errors import UserError
from parl.evaluate.measures import latest
from parl.evaluate.scoring import Scoring
from rewards.base import Reward
from rollouts.store.outline import Outline, read_outlines, shard_paths

# Column -> names of an episode's metrics, the first that it has. ``reward`` is the total one of an evaluation.
COLUMNS: dict[str, tuple[str, ...]] = {
    "success": ("success",),
    "item_f1": ("item_f1",),
    "critical_steps": ("critical_steps",),
    "path_tokens": ("path_tokens",),
    "makespan_s": ("makespan_s",),
    "total_tokens": ("total_tokens",),
    "subagents": ("subagents",),
    "spawn_rate": ("spawned",),
    "direct_parallel_rate": ("direct_parallel", "direct_parallel_rate"),
}
SHARES = ("success", "item_f1", "spawn_rate", "direct_parallel_rate")  # between 0 and 1
COSTS = ("critical_steps", "path_tokens", "makespan_s", "total_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One task's attempts. ``values``: means of all their metrics, those that every attempt has."""

    family: str
    width: int
    values: Mapping[str, float]


def records(
    store: Path, label: str, reward: Reward, *, keys: Collection[str] | None = None, attempts: int = 1
) -> dict[str, Record]:
    """By task, the first ``attempts`` of the policy ``label`` in ``store``, scored by ``reward``.

    ``keys``: only these tasks. UserError: there are no episodes, or they are damaged.
    """
    scoring = Scoring(reward=reward, steps=1)  # an evaluation's weights do not depend on the steps
    found: dict[str, list[Outline]] = {}
    if not store.is_dir():
        raise UserError(f"{store} is gone: run the sweep again, it evaluates what is missing")
    with readable():
        for (task, index), outline in latest(read_outlines(shard_paths(store, label), texts=reward.texts)).items():
            if index < attempts and (keys is None or task in keys):
                scoring.score_held_out(outline.episode)
                found.setdefault(task, []).append(outline)
    if not found:
        raise UserError(f"no episodes of {label} in {store}: run the sweep again, it evaluates what is missing")
    return {task: _record(tries) for task, tries in found.items()}


def _record(tries: list[Outline]) -> Record:
    task, values = tries[0].episode.task, [_values(one) for one in tries]
    shared = [name for name in values[0] if all(name in one for one in values)]
    return Record(
        family=task.family, width=task.width, values={name: fmean(one[name] for one in values) for name in shared}
    )


def _values(outline: Outline) -> dict[str, float]:
    episode = outline.episode
    numbers = {name: value for name, value in episode.metrics.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items()} | {"reward": float(episode.rewards["total"])}


def column(record: Record, name: str) -> float | None:
    """A column's value; None if the episodes do not have it."""
    names = COLUMNS.get(name, (name,))
    return next((record.values[one] for one in names if one in record.values), None)


def mean_of(found: Mapping[str, Record], metric: str) -> float:
    """The mean of ``metric`` over tasks; UserError if some task lacks it."""
    values = [column(record, metric) for record in found.values()]
    if any(value is None for value in values):
        known = ", ".join(sorted({name for record in found.values() for name in record.values}))
        raise UserError(f"choose.metric = {metric} is no metric of every episode; there are: {known}")
    return fmean(value for value in values if value is not None)
