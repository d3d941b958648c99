"""Reads a run's folder or a store for the report.

A missing file becomes a note, a damaged one a :class:`UserError`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from envs.base import TaskGroup
from parl.config.runs import named_path, runs_there
from parl.episodes.groups import families, run_groups
from parl.errors import UserError
from parl.report.episodes import load_episodes
from parl.report.spread import spread_charts
from parl.track.tracker import train_rows
from rollouts.store.lookup import shards
from rollouts.store.store import StoreError

_OF_A_RUN = ("config.yaml", "metrics.jsonl", "summary.json", "episodes", "eval", "evals")  # a run has one of these
_PREFIXES = ("reward/", "lambda/")  # of a reward's parts and of their weights
_PARTS = ("perf", "parallel", "finish", "critical")  # of the built-in reward, in order of their colours
_LABELS = {
    "reward/perf": "performance",
    "reward/critical": "critical steps",
    "lambda/parallel": "λ1 parallel",
    "lambda/finish": "λ2 finish",
}


@dataclass(slots=True, kw_only=True)
class RunData:
    """The content of the page. Each series is a list of ``[step, value]``."""

    name: str
    summary: dict[str, Any] = field(default_factory=dict)
    groups: tuple[TaskGroup, ...] = ()  # in display order
    charts: list[dict[str, Any]] = field(default_factory=list)
    spread: list[dict[str, Any]] = field(default_factory=list)  # charts over held-out episodes
    episodes: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def report_source(given: Path) -> Path:
    """The run, store or shard named by ``given`` (of a run also its name below ``runs/``).

    UserError for a folder without any: a report is not written just anywhere.
    """
    source = named_path(given)
    of_a_run = any((source / name).exists() for name in _OF_A_RUN)
    if source.exists() and not source.is_file() and not of_a_run and not shards(source):
        raise UserError(f"no run or store in {source}: nothing that a report is made of{runs_there(source.parent)}")
    return source


def load_run(source: Path, wanted: Sequence[str] = ()) -> RunData:
    """Read a run's folder, a store's folder or one shard; :class:`UserError` if missing or damaged.

    ``wanted``: episodes that the page must show (:func:`parl.report.episodes.load_episodes`).
    """
    source = Path(source)
    if not source.exists():
        raise UserError(f"no run folder {source}{runs_there(source.parent)}")
    run = RunData(name=source.resolve().name)
    run.episodes = load_episodes(source, wanted, run.notes)
    if source.is_file() or shards(source):
        return run
    run.summary = _read_json(source / "summary.json", run.notes, "the verdict: the run has not been evaluated yet", {})
    run.groups = run_groups(source, run.summary)
    if not run.episodes:
        run.notes.append("No stored episodes in evals/ or episodes/: there is no swarm viewer.")
    own = source / "metrics.jsonl"
    single = source / "single_agent" / "metrics.jsonl"
    if not own.is_file():
        run.notes.append("Without metrics.jsonl there are no curves.")
    elif not single.is_file():
        run.notes.append("No single_agent/metrics.jsonl: the curves show the trained policy alone.")
    run.spread = _spread(source)
    run.charts = _charts(_by_metric(own), _by_metric(single), families(run.groups))
    return run


def _spread(source: Path) -> list[dict[str, Any]]:
    try:
        return spread_charts(source)
    except StoreError as error:
        raise UserError(str(error)) from None


def _read_json(path: Path, notes: list[str], what: str, empty: Any) -> Any:
    if not path.is_file():
        notes.append(f"Without {path.name} the page lacks {what}.")
        return empty
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if type(value) is not type(empty):
        raise UserError(f"{path} is damaged: it must hold a JSON {'object' if empty == {} else 'list'}")
    return value


def _by_metric(path: Path) -> dict[str, list[list[float]]]:
    series: dict[str, dict[int, float]] = {}
    for row in train_rows(path):
        for name, value in row.items():
            if name not in ("step", "kind") and isinstance(value, int | float):
                series.setdefault(name, {})[row["step"]] = value
    return {name: [[step, points[step]] for step in sorted(points)] for name, points in series.items()}


def _outcome(series: list[dict[str, Any]]) -> dict[str, Any]:
    """The chart of the answers' scores, up to 1 unless some lie elsewhere."""
    usual = all(0 <= value <= 1 for one in series for _, value in one["points"])
    note = "item-F1, exact match or another score"
    return {"title": "Outcome: r_perf", "note": note, "series": series} | ({"max": 1} if usual else {})


def _charts(
    own: dict[str, list[list[float]]], single: dict[str, list[list[float]]], order: Sequence[str]
) -> list[dict[str, Any]]:
    """The curves of the page, without empty ones; families in ``order``, then by name."""

    def pair(metric: str) -> list[dict[str, Any]]:
        return [
            {"name": name, "color": color, "points": source[metric]}
            for name, color, source in (("trained", "trained", own), ("single agent", "single", single))
            if source.get(metric)
        ]

    def named(*parts: tuple[str, str, str]) -> list[dict[str, Any]]:
        return [
            {"name": name, "color": color, "points": own[metric]} for name, color, metric in parts if own.get(metric)
        ]

    def by_family(prefix: str) -> list[dict[str, Any]]:
        found = sorted(name[len(prefix) :] for name in own if name.startswith(prefix))
        names = [*order, *(name for name in found if name not in order)]
        parts = ((name.replace("_", " "), f"c{i % 6}", prefix + name) for i, name in enumerate(names))
        return named(*parts)

    def by_part(prefix: str, *without: str) -> list[dict[str, Any]]:
        """A reward's parts or their weights, each with its colour."""
        found = {name.removeprefix(part) for part in _PREFIXES for name in own if name.startswith(part)}
        names = [*_PARTS, *sorted(name for name in found - {*_PARTS, "total"} if "/" not in name)]
        metrics = ((prefix + name, f"c{i % 6}") for i, name in enumerate(names) if name not in without)
        return named(*((_LABELS.get(m, m.removeprefix(prefix).replace("_", " ")), color, m) for m, color in metrics))

    charts = [
        {"title": "Reward", "note": "mean of a step's episodes", "series": pair("reward/total")},
        {
            "title": "Critical steps per episode",
            "note": "fewer is faster",
            "zero": True,
            "series": pair("steps/critical"),
        },
        _outcome(pair("reward/perf")),
        {
            "title": "Spawn rate by task family",
            "note": "share of episodes that start a sub-agent",
            "zero": True,
            "max": 1,
        }
        | {"series": by_family("swarm/spawn_rate/")},
        {"title": "Sub-agents per episode", "note": "", "zero": True, "series": pair("swarm/subagents")},
        {"title": "Item-F1 by task family", "note": "", "max": 1, "series": by_family("perf/item_f1/")},
        {"title": "Reward parts, unweighted", "note": "", "series": by_part("reward/")},
        {"title": "Annealed weights λ", "note": "", "zero": True, "series": by_part("lambda/", "critical")},
        {
            "title": "Tokens per second",
            "note": "sampled, all agents",
            "zero": True,
            "series": pair("speed/tokens_per_s"),
        },
    ]
    annealed = own.get("lambda/parallel") or []
    zero_from = next((step for i, (step, _) in enumerate(annealed) if not any(v for _, v in annealed[i:])), None)
    return [chart | {"zero_lambda": zero_from} for chart in charts if chart["series"]]
