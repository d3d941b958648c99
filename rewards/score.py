"""Scoring: fills ``Episode.rewards`` and ``Episode.metrics``."""

from __future__ import annotations

from dataclasses import fields

from envs.base import Role
from rewards.outcome import Outcome, score_answer
from rewards.parl import RewardParts, Weights, finish_rate, parts_of_score, total
from rollouts.critical_path import critical_steps, tool_calls, total_steps
from rollouts.episode import Episode, EpisodeStatus

_PARTS = tuple(
    field.name for field in fields(RewardParts)
)  # not asdict, which copies deeply and takes ten times as long


def score_episode(episode: Episode, weights: Weights, cap: int) -> None:
    """Fill ``episode.rewards`` (perf, parallel, finish, critical unweighted, and the weighted total) and ``.metrics``.

    Metrics: ``item_f1``, ``row_f1`` (an exact-match task's exact match, 0 or 1), ``success`` (0 or 1),
    ``critical_steps``, ``total_steps`` in turns, ``tool_calls``, ``subagents``, ``spawned`` (0 or 1), ``finish_rate``
    (None where nothing was launched), ``tokens_orchestrator`` and ``tokens_subagent`` (sampled tokens),
    ``useless_spawn`` (1 where it spawned on a task of which the oracle says that spawning cannot pay).
    Answers count only where the episode ended ANSWERED. Scoring again replaces the earlier values.
    """
    answered = episode.status is EpisodeStatus.ANSWERED
    outcome = score_answer(episode.task, episode.answer) if answered else Outcome()
    parts = parts_of_score(episode, outcome.score, cap=cap)
    oracle = episode.task.oracle
    spawned = int(bool(episode.subagents))
    episode.rewards = {name: getattr(parts, name) for name in _PARTS} | {"total": total(parts, weights)}
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


def _sampled(episode: Episode, role: Role) -> int:
    # by turns, not by the mask, which an outline does not have: what was sampled is a turn, always
    return sum(turn.end - turn.start for trace in episode.traces if trace.role is role for turn in trace.turns)
