"""Means over scored episodes: one training step's metrics, and the table of an evaluation.

Every episode must have been through :func:`rewards.score.score_episode`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from rollouts.episode import Episode, EpisodeStatus

GROUPS: dict[str, Callable[[Episode], bool]] = {
    "wide": lambda e: e.task.family == "wide",
    "wide_12": lambda e: e.task.family == "wide" and e.task.width >= 12,
    "chain": lambda e: e.task.family == "chain",
    "single_fact": lambda e: e.task.family == "single_fact",
    "list": lambda e: e.task.family == "list",
    "swap": lambda e: e.task.family == "swap",
    "all": lambda e: True,
}
_PARTS = ("total", "perf", "parallel", "finish", "critical")


def aggregate(episodes: Sequence[Episode]) -> dict[str, float]:
    """Metrics of a training step, by the names under which they are tracked.

    ``episodes/<status>`` counts all episodes; everything else is a mean over those that did not end FAILED or
    CANCELLED, whose numbers are not the policy's. ``swarm/finish_rate`` is the mean over episodes that spawned,
    ``swarm/useless_spawn_rate`` the spawn rate over tasks where the oracle's width is 0. A mean over nothing is left
    out. ``perf/item_f1`` of exact-match tasks is their exact match.
    """
    out = {f"episodes/{status}": float(sum(e.status is status for e in episodes)) for status in EpisodeStatus}
    valid = [e for e in episodes if not e.void]
    if not valid:
        return out
    critical = [e.metrics["critical_steps"] for e in valid]
    out |= {f"reward/{part}": _mean(e.rewards[part] for e in valid) for part in _PARTS}
    out |= {
        "steps/critical": _mean(critical),
        "steps/critical_p50": float(np.percentile(critical, 50)),
        "steps/critical_p95": float(np.percentile(critical, 95)),
        "steps/total": _metric(valid, "total_steps"),
        "swarm/subagents": _metric(valid, "subagents"),
        "swarm/spawn_rate": _metric(valid, "spawned"),
        "perf/success": _metric(valid, "success"),
    }
    spawned = [e for e in valid if e.metrics["spawned"]]
    if spawned:
        out["swarm/finish_rate"] = _metric(spawned, "finish_rate")
    hopeless = [e for e in valid if e.task.oracle is not None and e.task.oracle.width == 0]
    if hopeless:
        out["swarm/useless_spawn_rate"] = _metric(hopeless, "spawned")
    for family in sorted({e.task.family for e in valid}):
        members = [e for e in valid if e.task.family == family]
        out[f"swarm/spawn_rate/{family}"] = _metric(members, "spawned")
        out[f"perf/item_f1/{family}"] = _metric(members, "item_f1")
        out[f"steps/critical/{family}"] = _metric(members, "critical_steps")
    return out


def evaluation_table(episodes: Sequence[Episode]) -> dict[str, dict[str, Any]]:
    """The evaluation by group of tasks: wide, wide_12 (wide tasks of width >= 12), chain, single_fact, list, swap, all.

    Each holds the means ``item_f1`` (exact-match tasks: their exact match), ``success``, ``critical_steps``,
    ``total_steps``, ``subagents``, ``spawn_rate``; ``finish_rate``, the mean over episodes that spawned, None where
    none did; and ``n_tasks``, the number of distinct tasks. A group without tasks has ``n_tasks`` 0 and None elsewhere.
    ``picture`` is there only where such tasks were asked. FAILED episodes count, with the 0 that they scored: an
    evaluation may not drop its failures.
    """
    table = {name: _row([e for e in episodes if belongs(e)]) for name, belongs in GROUPS.items()}
    pictures = [e for e in episodes if e.task.family == "picture"]
    return table | ({"picture": _row(pictures)} if pictures else {})


def _row(episodes: list[Episode]) -> dict[str, Any]:
    means = ("item_f1", "success", "critical_steps", "total_steps", "subagents")
    row: dict[str, Any] = {name: _metric(episodes, name) if episodes else None for name in means}
    row["spawn_rate"] = _metric(episodes, "spawned") if episodes else None
    spawned = [e for e in episodes if e.metrics["spawned"]]
    row["finish_rate"] = _metric(spawned, "finish_rate") if spawned else None
    row["n_tasks"] = len({e.task.key for e in episodes})
    return row


def _metric(episodes: list[Episode], name: str) -> float:
    return _mean(e.metrics[name] for e in episodes)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
