"""Advantages of episodes, and of co-trained sub-agents.

Advantage (K2.5 report Eq. 1): A_j = r_j − (1/K) Σ_k r_k over the K episodes of one task; no division by the
standard deviation unless the objective says so, no critic. One number per *episode*, whatever its number of
traces or rows: a baseline per row would weigh an episode by its number of rows.

Credit for co-trained sub-agents (``objective.credit``): with ``episode`` every trainable trace has the
episode's advantage. With ``agent`` a sub-agent's trace earns the episode's reward if it returned a valid
message, else at most 0 (:func:`subagent_reward`), minus the mean over the sub-agents of its group, with equal
weight per episode. Orchestrators keep the episode's advantage. Frozen sub-agents do not matter.

Counterfactual credit (``objective.counterfactual`` = w, off by default; ours): of the K episodes of a task some
spawned and some did not, and each kind shows what the other decision would have brought. With the outcome o_j, which is
the reward of an evaluation, so without λ1 and λ2,

    A_j + w · c_j        c_j = (K_other / K) · (o_j − mean of o over the K_other episodes of the other kind)

and c_j = 0 where the group has one kind alone (:func:`counterfactual_credit`).
"""

from __future__ import annotations

from collections.abc import Sequence

from rollouts.episode import Episode, Trace, TraceStatus

_STD_EPS = 1e-6


def group_advantages(rewards: Sequence[float], *, normalise_std: bool = False) -> list[float]:
    """A_j = r_j − mean(r), K2.5 Eq. 1; ``normalise_std``: divided by std(r), as in GRPO.

    The standard deviation is the sample's (over K − 1), plus 1e-6, as in GRPO's common implementations.
    """
    if not rewards:
        return []
    mean = sum(rewards) / len(rewards)
    advantages = [reward - mean for reward in rewards]
    if not normalise_std or len(rewards) == 1:
        return advantages
    std = (sum(advantage**2 for advantage in advantages) / (len(rewards) - 1)) ** 0.5
    return [advantage / (std + _STD_EPS) for advantage in advantages]


def counterfactual_credit(
    outcomes: Sequence[float], spawned: Sequence[bool], *, normalise_std: bool = False
) -> list[float]:
    """c_j = (K_other / K) (o_j − mean of o over the episodes of the other kind); all 0 where one kind is missing.

    K_other / K makes them sum to 0, as a baseline's do. In a group in which s episodes spawned and n did not, and with
    the difference D = mean of o over those that did − that over those that did not, the plain baseline gives an episode
    that spawned

        o_j − mean(o) = d + (n / K) D        d = o_j − mean of o over its own kind

    and this one (n / K) (d + D): what the decision changed counts in full, luck within a kind by the others' share.
    Over the kind both sum to (s n / K) D. ``normalise_std``: divided by the deviation of the outcomes, as
    :func:`group_advantages`.
    """
    kinds = [[outcome for outcome, did in zip(outcomes, spawned, strict=True) if did is kind] for kind in (False, True)]
    if not all(kinds):
        return [0.0] * len(outcomes)
    means = [sum(kind) / len(kind) for kind in kinds]
    credit = [
        len(kinds[not did]) / len(outcomes) * (outcome - means[not did])
        for outcome, did in zip(outcomes, spawned, strict=True)
    ]
    scale = _deviation(outcomes) + _STD_EPS if normalise_std else 1.0
    return [one / scale for one in credit]


def _deviation(values: Sequence[float]) -> float:
    """The sample's standard deviation of at least two values."""
    mean = sum(values) / len(values)
    return (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5


def subagent_reward(episode: Episode, trace: Trace) -> float:
    """A sub-agent's reward: its episode's total if it returned a valid message, else at most 0."""
    total = episode.rewards["total"]
    return total if trace.status is TraceStatus.FINISHED else min(total, 0.0)


def agent_advantages(group: Sequence[Episode], *, normalise_std: bool = False) -> list[dict[str, float]]:
    """For each episode of one task: the advantage of each trainable sub-agent, by agent id.

    The baseline is the mean over episodes of the mean over their trainable sub-agents, so that episodes weigh
    the same. ``normalise_std``: divided by the root mean square distance from it, weighed alike, plus 1e-6.
    """
    trained = [[trace for trace in episode.subagents if trace.trainable and any(trace.mask)] for episode in group]
    rewards = [
        {trace.agent_id: subagent_reward(episode, trace) for trace in traces}
        for episode, traces in zip(group, trained, strict=True)
    ]
    some = [list(own.values()) for own in rewards if own]
    if not some:
        return rewards
    baseline = sum(sum(own) / len(own) for own in some) / len(some)
    scale = 1.0
    if normalise_std:
        spread = sum(sum((reward - baseline) ** 2 for reward in own) / len(own) for own in some) / len(some)
        scale = 1 / (spread**0.5 + _STD_EPS)
    return [{agent: (reward - baseline) * scale for agent, reward in own.items()} for own in rewards]
