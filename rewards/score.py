"""Scoring: fills ``Episode.rewards`` and ``Episode.metrics``."""

from __future__ import annotations

import math
from typing import SupportsFloat

from envs.base import Role, Score
from rewards.base import PERF, TOTAL, Reward, Weights
from rewards.outcome import ANSWERS, PURE, score_answer
from rewards.parl_reward import finish_rate
from rollouts.costs import LatencyModel, calls_in_parallel, costs_of
from rollouts.critical_path import critical_steps, tool_calls, total_steps
from rollouts.episode import Episode, EpisodeStatus

PARTS = "score/"  # the prefix of other scores' parts


def score_episode(episode: Episode, reward: Reward, weights: Weights) -> None:
    """Fill ``episode.rewards`` (``perf``, the reward's parts, unweighted, and ``total``) and ``.metrics``.

    Without a score there is no ``perf``. Replaces earlier values. ValueError names a part that is not a finite number.
    """
    score = measure(episode, reward.latency)
    parts: dict[str, float] = {} if score is None else {PERF: score.value}
    parts |= reward.parts(episode, score)
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


def score_of(episode: Episode) -> Score | None:
    """The score that it got when it ended, or that of its answer; None if nothing scores it.

    Answers count only if the episode ended ANSWERED.
    """
    if episode.score is not None or episode.task.gold.kind not in PURE:
        return episode.score
    if episode.status is EpisodeStatus.ANSWERED:
        return score_answer(episode.task, episode.answer)
    return Score(value=0.0, success=False, parts=dict.fromkeys(ANSWERS, 0.0))


def measure(episode: Episode, latency: LatencyModel | None = None) -> Score | None:
    """Fill ``episode.metrics``, which do not depend on the reward; returns :func:`score_of` it.

    Metrics, where there is a score: ``score``, ``success`` (0 or 1), and its parts: those of
    ``rewards.outcome.ANSWERS`` (exact-match tasks: 0 or 1), any other as ``score/NAME``. Metrics of all episodes:
    ``critical_steps``, ``total_steps`` in turns, ``tool_calls``, ``subagents``, ``spawned`` (0 or 1), ``finish_rate``
    (None if nothing was launched), ``direct_parallel`` (1 if the orchestrator made several of its own tool calls in one
    turn), ``tokens_orchestrator``, ``tokens_subagent`` (sampled tokens), ``useless_spawn`` (1
    if it spawned on a task with oracle width 0), and ``rollouts.costs.COSTS``, the seconds under ``latency``.
    """
    score = score_of(episode)
    told = {} if score is None else {_name(part): value for part, value in score.parts.items()}
    if score is not None:
        told |= {"score": score.value, "success": int(score.solved)}
    oracle = episode.task.oracle
    spawned = int(bool(episode.subagents))
    episode.metrics = {
        **episode.metrics,
        **told,
        "critical_steps": critical_steps(episode),
        "total_steps": total_steps(episode),
        **costs_of(episode, latency or LatencyModel()),
        "tool_calls": tool_calls(episode),
        "subagents": len(episode.subagents),
        "spawned": spawned,
        "finish_rate": finish_rate(episode),
        "direct_parallel": int(calls_in_parallel(episode)),
        "tokens_orchestrator": _sampled(episode, Role.ORCHESTRATOR),
        "tokens_subagent": _sampled(episode, Role.SUBAGENT),
        "useless_spawn": int(bool(spawned and oracle is not None and oracle.width == 0)),
    }
    return score


def _name(part: str) -> str:
    return part if part in ANSWERS else PARTS + part


def _sampled(episode: Episode, role: Role) -> int:
    # counted by turns, since an outline has no mask: all sampled tokens belong to a turn
    return sum(turn.end - turn.start for trace in episode.traces if trace.role is role for turn in trace.turns)
