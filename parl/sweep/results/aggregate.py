"""What the cells of a sweep show together: by arm and group of tasks, with intervals, and paired differences. No torch.

Shapes: R runs of an arm, T tasks of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from envs.base import TaskGroup
from parl.episodes.groups import task_groups
from parl.errors import UserError
from parl.evaluate.measures import plain
from parl.sweep.cells import Cell
from parl.sweep.file import TRAINED, Sweep
from parl.sweep.results.crossed import Crossed
from parl.sweep.results.measure import COLUMNS, COSTS, SHARES, Record, column, records
from parl.sweep.state import Outcome, as_row
from parl.track.tracker import train_rows

_BOUNDS = (0.0, 1.0)
_COMPARED = ("success", "item_f1", *COSTS, "spawn_rate")
CURVES = ("reward/perf", "steps/critical", "swarm/spawn_rate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A finished cell with its episodes' numbers."""

    cell: Cell
    outcome: Outcome
    records: Mapping[str, Record]


def load_done(finished: Sequence[tuple[Cell, Outcome]]) -> list[Done]:
    """The finished cells with their numbers, read from their stores."""
    return [
        Done(
            cell=cell,
            outcome=outcome,
            records=records(
                cell.config.run_dir / outcome.store, outcome.label, cell.config.rewards, attempts=cell.attempts
            ),
        )
        for cell, outcome in finished
    ]


def aggregate(sweep: Sweep, done: Sequence[Done], *, cells: int) -> dict[str, Any]:
    """``results.json``: ``rows`` by arm and group, ``differences`` from the reference, ``curves``, ``runs``.

    ``cells``: those that the sweep has, done or not. UserError if no task is common to all.
    """
    if not done:
        raise UserError(f"no cell of sweep {sweep.name} is done yet: run it first, without --report")
    tasks = [key for key in done[0].records if all(key in one.records for one in done)]
    if not tasks:
        raise UserError("no task is common to all cells: their environments differ, so they cannot be compared")
    about = {key: done[0].records[key] for key in tasks}
    groups = _groups(sweep, done[0].cell, about)
    arms = {arm: [one for one in done if one.cell.arm == arm] for arm in sweep.arms}
    arms = {arm: own for arm, own in arms.items() if own}
    reference = sweep.first if sweep.first in arms else next(iter(arms))
    found: dict[str, Any] = {
        "sweep": sweep.name,
        "reference": reference,
        "cells": cells,
        "done": len(done),
        "cold_starts": len({one.outcome.cold for one in done}),
        "tasks": len(tasks),
        "only_common": any(len(one.records) > len(tasks) for one in done),
        "split": sweep.evaluate.split,
        "attempts": sweep.evaluate.attempts,
        "rows": [],
        "differences": [],
    }
    for group, belongs in groups.items():
        keys = [key for key in tasks if belongs(about[key])]
        found["rows"] += [_row(arm, group, own, keys) for arm, own in arms.items()]
        others = [arm for arm in arms if arm != reference]
        rows = [_difference(reference, arm, group, arms, keys) for arm in others]
        found["differences"] += [row for row in rows if row]
    found["curves"] = {arm: curves for arm, own in arms.items() if (curves := _curves(own))}
    found["runs"] = [as_row(one.cell, one.outcome) for one in done]
    return plain(found)


def task_keys(done: Sequence[Done]) -> set[str]:
    """The tasks that every cell was evaluated on."""
    return set.intersection(*(set(one.records) for one in done))


def _groups(sweep: Sweep, cell: Cell, about: Mapping[str, Record]) -> dict[str, Callable[[Record], bool]]:
    """The environment's groups, families without one, the sweep's own, and all; only those with tasks."""
    known: Sequence[TaskGroup] = task_groups(cell.config.envs)
    found: dict[str, Callable[[Record], bool]] = {}
    for group in known:
        found[group.name] = lambda one, group=group: group.holds(one.family, one.width)
    for family in sorted({one.family for one in about.values()} - {group.family for group in known}):
        name = f"family {family}" if family in found else family
        found[name] = lambda one, family=family: one.family == family
    for name, own in sweep.evaluate.groups.items():
        found[name] = lambda one, own=own: own.holds(one.family, one.width)
    found["all"] = lambda one: True
    return {name: belongs for name, belongs in found.items() if any(map(belongs, about.values()))}


def _matrix(own: Sequence[Done], keys: Sequence[str], name: str) -> np.ndarray | None:
    """A column's values [R, T]; None where some episode lacks it."""
    values = [[column(one.records[key], name) for key in keys] for one in own]
    if any(value is None for row in values for value in row):
        return None
    return np.array(values, dtype=float)


def _row(arm: str, group: str, own: Sequence[Done], keys: Sequence[str]) -> dict[str, Any]:
    crossed = Crossed([one.outcome.cold for one in own], len(keys))
    row: dict[str, Any] = {
        "arm": arm,
        "group": group,
        "tasks": len(keys),
        "runs": len(own),
        "cold_starts": crossed.cold_starts,
    }
    for name in COLUMNS:
        values_RT = _matrix(own, keys, name)
        bounds = _BOUNDS if name in SHARES else None
        found = None if values_RT is None else crossed.mean(values_RT, bounds=bounds)
        row[name] = found and found._replace(low=max(found.low, 0.0))  # no column is ever negative
    row["by_run"] = {
        one.cell.id: {name: _mean(one, keys, name) for name in ("success", "item_f1", "critical_steps")} for one in own
    }
    return row


def _mean(one: Done, keys: Sequence[str], name: str) -> float | None:
    values = [column(one.records[key], name) for key in keys]
    return None if None in values else fmean(value for value in values if value is not None)


def _pairs(a: Sequence[Done], b: Sequence[Done]) -> list[tuple[Done, Done]]:
    """Runs at the same point of the grid, as far as both arms' points say."""

    def meet(one: Done, other: Done) -> bool:
        return all(one.cell.at[key] == other.cell.at[key] for key in one.cell.at.keys() & other.cell.at.keys())

    return [(one, other) for one in a for other in b if meet(one, other)]


def _difference(
    reference: str, arm: str, group: str, arms: Mapping[str, Sequence[Done]], keys: Sequence[str]
) -> dict[str, Any] | None:
    """``arm`` minus the reference, by column, and for costs arm / reference; None without runs in pairs."""
    pairs = _pairs(arms[reference], arms[arm])
    if not pairs:
        return None
    left, right = [one for one, _ in pairs], [other for _, other in pairs]
    crossed = Crossed([one.outcome.cold for one in left], len(keys))
    row: dict[str, Any] = {"arm": arm, "reference": reference, "group": group, "tasks": len(keys), "pairs": len(pairs)}
    for name in _COMPARED:
        a_RT, b_RT = _matrix(left, keys, name), _matrix(right, keys, name)
        if a_RT is None or b_RT is None:
            row[name] = None
            continue
        bounds = _BOUNDS if name in SHARES else None
        row[name] = {"difference": crossed.difference(a_RT, b_RT, bounds=bounds)}
        if name in COSTS:
            row[name]["ratio"] = crossed.ratio(b_RT, a_RT)
    return row


def _curves(own: Sequence[Done]) -> dict[str, list[list[float]]]:
    """By metric, ``[step, mean, lowest, highest]`` over an arm's runs, of steps that all have."""
    files = [one.cell.config.run_dir / "metrics.jsonl" for one in own if one.cell.policy == TRAINED]
    tables = [train_rows(file) for file in files if file.is_file()]
    found: dict[str, list[list[float]]] = {}
    for name in CURVES:
        series = [{row["step"]: row[name] for row in rows if name in row} for rows in tables]
        steps = sorted(set.intersection(*map(set, series))) if series else []
        at = {step: [one[step] for one in series] for step in steps}
        if at:
            found[name] = [[step, fmean(values), min(values), max(values)] for step, values in at.items()]
    return found
