"""Dynamic sampling (DAPO, arXiv 2503.14476, 3.2): groups with equal rewards are replaced.

Their advantages are 0, so they only thin out the batch. They are left out of the step's rows, and other tasks
are drawn in their place, at most ``rollouts.dynamic_sampling`` times. Their episodes stay in the store and in
the step's means, which would otherwise be biased.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from rollouts.episode import Episode, EpisodeStatus

_SAME = 1e-9  # smaller differences count as equal: sums of the same parts in another order


def informative(episodes: Iterable[Episode]) -> list[Episode]:
    """``episodes`` without groups of equal rewards; FAILED ones are ignored and left out."""
    groups: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        if episode.status is not EpisodeStatus.FAILED:
            groups[episode.task.key].append(episode)
    return [episode for group in groups.values() if _differ(group) for episode in group]


def draw_groups(draw: Callable[[int, int], list[Episode]], wanted: int, rounds: int) -> list[Episode]:
    """All episodes of up to 1 + ``rounds`` draws, until ``wanted`` groups are informative.

    ``draw(first, count)``: the scored episodes of tasks ``first`` to ``first + count`` of the step.
    """
    episodes, drawn = draw(0, wanted), wanted
    for _ in range(rounds):
        missing = wanted - groups(informative(episodes))
        if missing <= 0:
            break
        episodes += draw(drawn, missing)
        drawn += missing
    return episodes


def groups(episodes: Iterable[Episode]) -> int:
    """Number of tasks that they attempted."""
    return len({episode.task.key for episode in episodes})


def mixed_groups(episodes: Iterable[Episode]) -> int:
    """Number of tasks with episodes that spawned and episodes that did not; FAILED and CANCELLED ones are ignored."""
    kinds: dict[str, set[bool]] = defaultdict(set)
    for episode in episodes:
        if not episode.void:
            kinds[episode.task.key].add(bool(episode.subagents))
    return sum(len(found) == 2 for found in kinds.values())


def _differ(group: list[Episode]) -> bool:
    rewards = [episode.rewards["total"] for episode in group]
    return max(rewards) - min(rewards) > _SAME
