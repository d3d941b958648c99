"""What the episodes of a task's group say about each other, noted with each before it is scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rewards.base import Reward
from rewards.parl_reward import SHORTEST
from rewards.score import score_of
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode


def note_groups(episodes: Sequence[Episode], reward: Reward) -> None:
    """Note what ``reward`` wants to know of each group, and the critical steps of its shortest solved episode.

    The latter is the metric ``shortest_success`` of all its episodes, for tasks without an oracle; absent if none
    solved the task.
    """
    groups: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        groups[episode.task.key].append(episode)
    for group in groups.values():
        valid = [one for one in group if not one.void]
        solved = [one for one in valid if (score := score_of(one)) is not None and score.solved]
        facts = dict(reward.noted(valid, solved)) if valid else {}
        if solved and group[0].task.oracle is None:
            facts[SHORTEST] = min(map(critical_steps, solved))
        for episode in group:
            episode.metrics |= facts
