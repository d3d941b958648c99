"""The PARL reward: pure functions of an ``Episode``.

Kimi K2.5 report, Agent Swarm:  r = λ1 · r_parallel + λ2 · r_finish + r_perf, with λ1, λ2 annealed to 0. The report
gives the terms but not their formulas; these are ours, all without unit:

    perf      score of the answer in [0, 1] (item-F1 or exact match); 0 unless the episode ended ANSWERED
    parallel  min(sub-agents, cap) / cap, in [0, 1]: pays for instantiating, against serial collapse
    finish    sub-agents that returned a valid message / sub-agents launched, in [0, 1]: against spurious parallelism
    critical  min(critical steps / reference, 2), in [0, 2]: enters the total with a minus sign; 0 without a reference

``finish`` is 0, not 1, where nothing was launched. A vacuous 1 would pay every episode that spawns nothing the full
term, more than one that spawns and loses a single sub-agent: the term would buy the serial collapse that ``parallel``
is there to prevent. With 0, one launched and finished sub-agent earns it; not spawning never earns more than spawning.

The reference of ``critical`` is the oracle's serial cost: 1 means as slow as one agent that makes no mistake. Tasks
without an oracle use the episode's critical-step budget instead; without either the term is 0. It is cut at 2 so that
one runaway episode cannot dominate the baseline of its group. An episode without an answer pays the full 2: otherwise
giving up at once would be cheaper than trying.
"""

from __future__ import annotations

from dataclasses import dataclass

from rewards.outcome import score_answer
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode, EpisodeStatus, TraceStatus

CRITICAL_MAX = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardParts:
    """The four parts, unweighted."""

    perf: float
    parallel: float
    finish: float
    critical: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """λ1, λ2 and μ. ``perf`` always weighs 1."""

    parallel: float = 0.0
    finish: float = 0.0
    critical: float = 0.0


def reward_parts(episode: Episode, *, cap: int) -> RewardParts:
    """The unweighted parts of ``episode``; ``cap`` is the number of sub-agents at which ``parallel`` reaches 1."""
    return parts_of_score(episode, answer_score(episode), cap=cap)


def answer_score(episode: Episode) -> float:
    """r_perf: the answer's score in [0, 1], 0 unless the episode ended ANSWERED."""
    answered = episode.status is EpisodeStatus.ANSWERED
    return min(max(score_answer(episode.task, episode.answer).score, 0.0), 1.0) if answered else 0.0


def parts_of_score(episode: Episode, perf: float, *, cap: int) -> RewardParts:
    """:func:`reward_parts` where ``perf`` is known already (another judge, a re-scoring)."""
    if cap < 1:
        raise ValueError(f"cap must be at least 1, not {cap}")
    return RewardParts(
        perf=perf,
        parallel=min(len(episode.subagents), cap) / cap,
        finish=finish_rate(episode) or 0.0,
        critical=critical_share(episode),
    )


def finish_rate(episode: Episode) -> float | None:
    """Sub-agents that returned a valid message / sub-agents launched; None where none was launched."""
    launched = episode.subagents
    finished = sum(trace.status is TraceStatus.FINISHED for trace in launched)
    return finished / len(launched) if launched else None


def critical_share(episode: Episode) -> float:
    """min(critical steps / reference, 2), 2 without an answer; the reference is the module's text's, 0 without one."""
    oracle = episode.task.oracle
    reference = oracle.serial_steps if oracle else episode.critical_budget
    if reference <= 0:
        return 0.0
    answered = episode.status is EpisodeStatus.ANSWERED
    return min(critical_steps(episode) / reference, CRITICAL_MAX) if answered else CRITICAL_MAX


def total(parts: RewardParts, weights: Weights) -> float:
    """perf + λ1 · parallel + λ2 · finish − μ · critical (the report's additive form, with our latency term)."""
    bonus = weights.parallel * parts.parallel + weights.finish * parts.finish
    return parts.perf + bonus - weights.critical * parts.critical


def blog_total(parts: RewardParts, *, success: bool, lambda_aux: float) -> float:
    """λ · parallel + (1 − λ) · I[success] · Q, the convex form of Moonshot's blog of 27 January 2026.

    Q, the quality of the trajectory, is ``perf``. It has neither a finish nor a latency term, and a partly right answer
    earns nothing. The blog lets λ fall from 0.1 to 0.
    """
    if not 0 <= lambda_aux <= 1:
        raise ValueError(f"lambda_aux must lie in [0, 1], not {lambda_aux}")
    return lambda_aux * parts.parallel + (1 - lambda_aux) * (parts.perf if success else 0.0)
