"""Means over scored episodes: one training step's metrics, and the table of an evaluation.

Every episode must have passed :func:`rewards.score.score_episode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from envs.base import TaskGroup
from rewards.base import TOTAL, Reward, Weights
from rewards.outcome import ANSWERS
from rewards.score import PARTS
from rollouts.costs import COSTS, tokens_per_success
from rollouts.episode import Episode, EpisodeStatus


def aggregate(
    episodes: Sequence[Episode], reward: Reward | None = None, weights: Weights | None = None
) -> dict[str, float]:
    """Metrics of a training step by tracked name; with ``reward`` and ``weights`` also its weighted parts.

    ``episodes/<status>`` counts all episodes; everything else is a mean over those that did not end FAILED or
    CANCELLED. ``swarm/finish_rate`` is the mean over episodes that spawned, ``swarm/useless_spawn_rate`` the
    spawn rate over tasks with oracle width 0. A mean over nothing is left out: a metric's mean is that of the
    episodes that have it. ``perf/item_f1`` of exact-match tasks is their exact match, ``score/NAME`` a part of
    other scores.
    """
    out = {f"episodes/{status}": float(sum(e.status is status for e in episodes)) for status in EpisodeStatus}
    valid = [e for e in episodes if not e.void]
    if not valid:
        return out
    critical = [e.metrics["critical_steps"] for e in valid]
    parts = {name: _mean(e.rewards.get(name, 0.0) for e in valid) for name in _names(valid)}
    out |= {f"reward/{name}": value for name, value in parts.items()}
    out |= {
        "steps/critical": _mean(critical),
        "steps/critical_p50": float(np.percentile(critical, 50)),
        "steps/critical_p95": float(np.percentile(critical, 95)),
        "steps/total": _mean(e.metrics["total_steps"] for e in valid),
        "swarm/subagents": _mean(e.metrics["subagents"] for e in valid),
        "swarm/spawn_rate": _mean(e.metrics["spawned"] for e in valid),
        "swarm/direct_parallel_rate": _mean(e.metrics["direct_parallel"] for e in valid),
        "swarm/parallelism": _mean(e.metrics["total_steps"] / max(e.metrics["critical_steps"], 1) for e in valid),
    }
    named = dict.fromkeys(name for e in valid for name in e.metrics if name.startswith(PARTS))
    out |= _metrics(valid, {f"perf/{name}": name for name in ("success", *ANSWERS)} | {name: name for name in named})
    if reward is not None and weights is not None:
        shares = reward.weighted({name: value for name, value in parts.items() if name != TOTAL}, weights)
        out |= {f"reward/weighted/{name}": value for name, value in shares.items()}
    out |= _turns(valid) | _latencies(valid)
    out |= _metrics(valid, {f"cost/{name}": name for name in COSTS})
    if (each := tokens_per_success(valid)) is not None:
        out["cost/tokens_per_success"] = each
    spawned = [e for e in valid if e.metrics["spawned"]]
    if spawned:
        out |= _metrics(spawned, {"swarm/finish_rate": "finish_rate"})
        out["swarm/duplicate_rate"] = _mean(duplicate_rate(e) for e in spawned)
    hopeless = [e for e in valid if e.task.oracle is not None and e.task.oracle.width == 0]
    if hopeless:
        out |= _metrics(hopeless, {"swarm/useless_spawn_rate": "spawned"})
    for family in sorted({e.task.family for e in valid}):
        members = [e for e in valid if e.task.family == family]
        names = {"swarm/spawn_rate": "spawned", "perf/item_f1": "item_f1", "steps/critical": "critical_steps"}
        names |= {"swarm/direct_parallel_rate": "direct_parallel"}
        names |= {f"cost/{name}": name for name in ("path_tokens", "makespan_s")}
        out |= _metrics(members, {f"{tracked}/{family}": name for tracked, name in names.items()})
    return out


def _names(episodes: Sequence[Episode]) -> list[str]:
    """Names of the parts of any episode, the total first; a missing part counts 0."""
    return list(dict.fromkeys([TOTAL, *(name for episode in episodes for name in episode.rewards)]))


def duplicate_rate(episode: Episode) -> float:
    """Share of an episode's sub-agents with the prompt of an earlier one, ignoring case and spaces."""
    asked = [" ".join(trace.prompt.lower().split()) for trace in episode.subagents]
    return 1.0 - len(set(asked)) / len(asked) if asked else 0.0


def _turns(episodes: Sequence[Episode]) -> dict[str, float]:
    """Shares of all agents' turns that were malformed or truncated; calls per episode."""
    turns = [turn for episode in episodes for trace in episode.traces for turn in trace.turns]
    out = {"turns/calls": sum(len(turn.calls) for turn in turns) / len(episodes)}
    if turns:
        out |= {"turns/unread": _mean(turn.unread for turn in turns), "turns/cut": _mean(turn.cut for turn in turns)}
    return out


def _latencies(episodes: Sequence[Episode]) -> dict[str, float]:
    """Median and 95th percentile of model and tool latency in seconds, and the share of failed tool calls."""
    turns = [turn for episode in episodes for trace in episode.traces for turn in trace.turns]
    launching = {call for turn in turns if turn.spawned for call in map(id, turn.calls)}
    called = [
        result
        for turn in turns
        for call, result in zip(turn.calls, turn.results, strict=False)
        if id(call) not in launching
    ]
    seconds = {
        "model": [turn.t_model - turn.t_start for turn in turns],
        "tool": [result.latency_s for result in called],
    }
    out = {
        f"latency/{name}_{label}": float(np.percentile(values, share))
        for name, values in seconds.items()
        for label, share in (("p50", 50), ("p95", 95))
        if values
    }
    if called:
        out["rollouts/tool_error_rate"] = _mean(result.error is not None for result in called)
    return out


def evaluation_table(episodes: Sequence[Episode], groups: Sequence[TaskGroup] = ()) -> dict[str, dict[str, Any]]:
    """The evaluation by group of tasks: the environment's ``groups``, then families without a group, then
    all.

    Each holds the means ``item_f1``, ``row_f1``, ``values_f1`` (exact-match tasks: their exact match), ``success``,
    ``critical_steps``, ``total_steps``, ``subagents``, ``spawn_rate``, ``direct_parallel_rate`` and those of
    ``rollouts.costs.COSTS``;
    ``tokens_per_success``, the tokens of all episodes by solved ones; ``finish_rate``, the mean over episodes that
    spawned; and ``n_tasks``, the number of distinct tasks. What no episode has is None. A group without tasks has
    ``n_tasks`` 0 and None elsewhere, or no row (``TaskGroup.always``). FAILED episodes count with their score of 0.
    """
    found = {group.name: [e for e in episodes if group.holds(e.task.family, e.task.width)] for group in groups}
    table = {group.name: _row(found[group.name]) for group in groups if group.always or found[group.name]}
    for family in sorted({e.task.family for e in episodes} - {group.family for group in groups}):
        name = f"family {family}" if family in table else family
        table[name] = _row([e for e in episodes if e.task.family == family])
    return table | {"all": _row(list(episodes))}


def _row(episodes: list[Episode]) -> dict[str, Any]:
    means = ("item_f1", "row_f1", "values_f1", "success", "critical_steps", "total_steps", *COSTS, "subagents")
    row: dict[str, Any] = {name: _metric(episodes, name) for name in means}
    row["spawn_rate"] = _metric(episodes, "spawned")
    row["direct_parallel_rate"] = _metric(episodes, "direct_parallel")
    row["finish_rate"] = _metric([e for e in episodes if e.metrics["spawned"]], "finish_rate")
    row["tokens_per_success"] = tokens_per_success(episodes)
    row["n_tasks"] = len({e.task.key for e in episodes})
    return row


def _metrics(episodes: list[Episode], names: dict[str, str]) -> dict[str, float]:
    """Means by tracked name, of those metrics that some of ``episodes`` have."""
    means = {tracked: _metric(episodes, name) for tracked, name in names.items()}
    return {tracked: mean for tracked, mean in means.items() if mean is not None}


def _metric(episodes: list[Episode], name: str) -> float | None:
    """The mean over the episodes that have it; None without one."""
    values = [e.metrics[name] for e in episodes if name in e.metrics]
    return _mean(values) if values else None


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
