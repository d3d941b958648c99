"""From a group of episodes to rows for the learner.

Every row carries its tokens' advantages (``parl/learn/advantage.py``). The denominator N of the loss is the
number of trained tokens of the whole step (:func:`denominator`). Every token has the weight A_j / N, so
splitting an episode in rows leaves the gradient unchanged.

Only trainable traces give rows: frozen sub-agents are observations. FAILED episodes (the machine's fault)
give no rows and do not enter the baseline of their group.

Shapes: T tokens of a row, L mixture-of-experts layers, K experts per token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from parl.learn.advantage import agent_advantages, counterfactual_credit, group_advantages
from rollouts.episode import Episode, Trace


@dataclass(slots=True, kw_only=True)
class Row:
    """One training sample. ``key`` is (task key, index of the episode in its group, agent id)."""

    key: tuple[str, int, str]
    tokens: np.ndarray  # int32 [T]
    mask: np.ndarray  # bool [T], True where the token is trained
    logprobs: np.ndarray  # float32 [T], of the policy that sampled; 0 where mask is False
    advantages: np.ndarray  # float32 [T], 0 where mask is False
    routes: np.ndarray | None = None  # int16 [T, L, K]
    media: tuple[tuple[int, bytes], ...] = ()  # pictures: position of the first placeholder, PNG file
    proximal: np.ndarray | None = None  # float32 [T], of the learner before the step's first update
    reference: np.ndarray | None = None  # float32 [T], of the reference policy

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return int(self.mask.sum())


def step_rows(
    episodes: Iterable[Episode],
    *,
    routed: bool = False,
    normalise_std: bool = False,
    credit: Literal["episode", "agent"] = "episode",
    counterfactual: float = 0.0,
    outcome: Callable[[Episode], float] | None = None,
) -> list[Row]:
    """Rows of a training step's scored episodes, in the order given: groups by task key, then :func:`episode_rows`.

    ``counterfactual``: the weight of the credit against episodes of the other kind, by their ``outcome``.
    """
    valid = [episode for episode in episodes if not episode.void]
    groups: dict[str, list[int]] = defaultdict(list)
    for position, episode in enumerate(valid):
        groups[episode.task.key].append(position)
    advantages = [0.0] * len(valid)
    own: list[dict[str, float]] = [{} for _ in valid]
    for members in groups.values():
        rewards = [valid[i].rewards["total"] for i in members]
        for position, advantage in zip(members, group_advantages(rewards, normalise_std=normalise_std), strict=True):
            advantages[position] = advantage
        if counterfactual and outcome is not None:
            outcomes, spawned = zip(*((outcome(valid[i]), bool(valid[i].subagents)) for i in members), strict=True)
            credits = counterfactual_credit(outcomes, spawned, normalise_std=normalise_std)
            for position, one in zip(members, credits, strict=True):
                advantages[position] += counterfactual * one
        if credit == "agent":
            found = agent_advantages([valid[i] for i in members], normalise_std=normalise_std)
            for position, agents in zip(members, found, strict=True):
                own[position] = agents
    triples = zip(valid, advantages, own, strict=True)
    return [row for episode, shared, mine in triples for row in episode_rows(episode, shared, routed=routed, own=mine)]


def episode_rows(
    episode: Episode, advantage: float, *, routed: bool = False, own: Mapping[str, float] | None = None
) -> list[Row]:
    """One row per trainable trace with sampled tokens (one per context); none for FAILED and CANCELLED.

    ``own``: advantages by agent id that replace the episode's ``advantage``. ``routed``: the policy is a
    mixture of experts, so a trace without routes is an error.
    """
    if episode.void:
        return []
    traces = [trace for trace in episode.traces if trace.trainable and any(trace.mask)]
    rows = (
        _row(episode, trace, (own or {}).get(trace.agent_id, advantage), routed, span)
        for trace in traces
        for span in trace.contexts
    )
    return [row for row in rows if row.trained]


def denominator(rows: Iterable[Row]) -> int:
    """N of K2.5 Eq. 1: trained tokens of all rows of the step, over all ranks."""
    return sum(row.trained for row in rows)


def _row(episode: Episode, trace: Trace, advantage: float, routed: bool, span: tuple[int, int]) -> Row:
    where = f"episode {episode.task.key}#{episode.index}, agent {trace.agent_id}"
    length = len(trace.tokens)
    if not len(trace.mask) == len(trace.logprobs) == length:
        raise ValueError(f"{where}: {length} tokens, {len(trace.mask)} mask, {len(trace.logprobs)} log-probs")
    if routed and trace.routes is None:
        raise ValueError(f"{where}: no routes, but the policy is a mixture of experts")
    if trace.routes is not None and len(trace.routes) != length:
        raise ValueError(f"{where}: {length} tokens, but routes of {len(trace.routes)}")
    start, end = span
    mask = np.asarray(trace.mask[start:end], dtype=bool)
    return Row(
        key=(episode.task.key, episode.index, trace.agent_id),
        tokens=np.asarray(trace.tokens[start:end], dtype=np.int32),
        mask=mask,
        logprobs=np.where(mask, np.asarray(trace.logprobs[start:end], dtype=np.float32), np.float32(0)),
        advantages=np.where(mask, np.float32(advantage), np.float32(0)),
        routes=None if trace.routes is None else np.asarray(trace.routes[start:end], dtype=np.int16),
        media=tuple((at - start, png) for at, png in trace.media if start <= at < end),
    )
