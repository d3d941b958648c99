"""Scoring: fills ``Episode.rewards`` and ``Episode.metrics``."""

from __future__ import annotations

import math
from typing import SupportsFloat

from envs.base import Role
from rewards.base import PERF, TOTAL, Reward, Weights
from rewards.outcome import Outcome, score_answer
from rewards.parl_reward import finish_rate
from rollouts.critical_path import critical_steps, tool_calls, total_steps
from rollouts.episode import Episode, EpisodeStatus


def score_episode(episode: Episode, reward: Reward, weights: Weights) -> None:
    """Fill ``episode.rewards`` (``perf``, the reward's parts, unweighted, and ``total``) and ``.metrics``.

    Replaces earlier values. ValueError names a part that is not a finite number.
    """
    outcome = measure(episode)
    parts = {PERF: outcome.score} | reward.parts(episode, outcome)
    if TOTAL in parts:
        raise ValueError(f"rewards.name={reward.name}: a part is called {TOTAL}, which is their sum: rename it")
    parts = {name: _number(value, name, reward, episode) for name, value in parts.items()}
    total = reward.total(parts, weights)
    episode.rewards = parts | {TOTAL: _number(total, TOTAL, reward, episode)}


def _number(value: object, name: str, reward: Reward, episode: Episode) -> float:
    if not isinstance(value, SupportsFloat) or not math.isfinite(number := float(value)):
        where = f"{episode.task.key}#{episode.index}"
        raise ValueError(f"rewards.name={reward.name}: {name} = {value!r} of {where} is no finite number")
    return number


def measure(episode: Episode) -> Outcome:
    """Fill ``episode.metrics``, which do not depend on the reward; returns the answer's score.

    Metrics: ``item_f1``, ``row_f1`` (exact-match tasks: 0 or 1), ``success`` (0 or 1), ``critical_steps``,
    ``total_steps`` in turns, ``tool_calls``, ``subagents``, ``spawned`` (0 or 1), ``finish_rate`` (None if
    nothing was launched), ``tokens_orchestrator``, ``tokens_subagent`` (sampled tokens), ``useless_spawn`` (1
    if it spawned on a task with oracle width 0). Answers count only if the episode ended ANSWERED.
    """
    answered = episode.status is EpisodeStatus.ANSWERED
    outcome = score_answer(episode.task, episode.answer) if answered else Outcome()
    oracle = episode.task.oracle
    spawned = int(bool(episode.subagents))
    episode.metrics = {
        **episode.metrics,
        "item_f1": outcome.details.get("item_f1", 0.0),
        "row_f1": outcome.details.get("row_f1", 0.0),
        "success": int(outcome.success),
        "critical_steps": critical_steps(episode),
        "total_steps": total_steps(episode),
        "tool_calls": tool_calls(episode),
        "subagents": len(episode.subagents),
        "spawned": spawned,
        "finish_rate": finish_rate(episode),
        "tokens_orchestrator": _sampled(episode, Role.ORCHESTRATOR),
        "tokens_subagent": _sampled(episode, Role.SUBAGENT),
        "useless_spawn": int(bool(spawned and oracle is not None and oracle.width == 0)),
    }
    return outcome


def _sampled(episode: Episode, role: Role) -> int:
    # counted by turns, since an outline has no mask: all sampled tokens belong to a turn
    return sum(turn.end - turn.start for trace in episode.traces if trace.role is role for turn in trace.turns)
