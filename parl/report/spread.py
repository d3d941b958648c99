"""Distributions of held-out episodes by policy: sub-agents, critical steps, steps to a target score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parl.episodes.stores import final_stores
from rollouts.store.lookup import read_columns
from rollouts.store.outline import shard_paths

_POLICIES = (
    ("trained", "trained swarm", "trained"),
    ("single_agent", "single agent", "single"),
    ("cold_start", "cold start", "cold"),
)
_NEEDED = {"critical_steps", "subagents"}  # missing in unscored episodes
_TARGETS = 50  # points of the curve over target scores

Points = list[list[float]]


def spread_charts(run_dir: Path) -> list[dict[str, Any]]:
    """The charts, in the form of :func:`parl.report.data.load_run`; empty without evaluations. StoreError."""
    stores = final_stores(run_dir)
    metrics = {kind: _metrics(stores[kind], kind) for kind, _, _ in _POLICIES if kind in stores}

    def series(points: Any) -> list[dict[str, Any]]:
        out = [
            {"name": name, "color": color, "points": points(metrics[kind])}
            for kind, name, color in _POLICIES
            if metrics.get(kind)
        ]
        return [one for one in out if one["points"]]

    charts = [
        {
            "title": "Critical steps for a target score",
            "note": "budget at which the mean score, late episodes counting 0, reaches the target",
            "x": "score",
            "zero": True,
            "series": series(time_to_score),
        },
        {
            "title": "Critical steps",
            "note": "share of held-out episodes that end within so many",
            "x": "steps",
            "zero": True,
            "max": 1,
            "series": series(lambda own: cumulative([m["critical_steps"] for m in own])),
        },
        {
            "title": "Width",
            "note": "share of held-out episodes with so many sub-agents",
            "x": "width",
            "zero": True,
            "max": 1,
            "series": series(lambda own: shares([m["subagents"] for m in own])),
        },
    ]
    return [chart | {"zero_lambda": None} for chart in charts if chart["series"]]


def _metrics(store: Path, kind: str) -> list[dict[str, Any]]:
    """The metrics of each attempt at a task with its ``perf``, if it has one; the last of repeated ones."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for path in shard_paths(store, kind):
        for row in read_columns(path, ("task_key", "index", "rewards", "metrics")):
            if row["metrics"].keys() >= _NEEDED:
                scored = {"perf": row["rewards"]["perf"]} if "perf" in row["rewards"] else {}
                found[row["task_key"], row["index"]] = row["metrics"] | scored
    return list(found.values())


def time_to_score(metrics: Sequence[dict[str, Any]]) -> Points:
    """[target, critical steps]: the smallest budget T with mean(score · [steps <= T]) >= target.

    An exact form of K2.5's figure of execution time against item-F1: an episode that needs longer counts 0. Empty
    unless all have a score.
    """
    if not all("perf" in m for m in metrics):
        return []
    order = sorted((m["critical_steps"], m["perf"]) for m in metrics)
    reached = sum(score for _, score in order) / len(order)
    out: Points = []
    total, place = 0.0, 0
    for number in range(1, _TARGETS + 1):
        target = number / _TARGETS
        if target > reached + 1e-12:
            break
        while total / len(order) < target - 1e-12:
            total += order[place][1]
            place += 1
        out.append([target, order[max(place - 1, 0)][0]])
    return out


def cumulative(values: Sequence[float]) -> Points:
    """[value, share of ``values`` up to it], from 0 on."""
    counts = Counter(int(value) for value in values)
    out: Points = []
    below = 0
    for value in range(max(counts) + 1):
        below += counts[value]
        out.append([value, below / len(values)])
    return out


def shares(values: Sequence[float]) -> Points:
    """[value, share of ``values`` equal to it], from 0 to the largest."""
    counts = Counter(int(value) for value in values)
    return [[value, counts[value] / len(values)] for value in range(max(counts) + 1)]
