"""What the episodes of a task's group say about each other, noted with each before it is scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rewards.parl_reward import SHORTEST
from rewards.score import score_of
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode


def note_groups(episodes: Sequence[Episode]) -> None:
    """Note the critical steps of each group's shortest solved episode, for tasks without an oracle.

    It is the metric ``shortest_success`` of all its episodes, stored with them, so that one of them can be scored
    again alone; absent if none solved the task.
    """
    groups: dict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        if episode.task.oracle is None:
            groups[episode.task.key].append(episode)
    for group in groups.values():
        solved = [one for one in group if not one.void and (score := score_of(one)) is not None and score.solved]
        if solved:
            shortest = min(map(critical_steps, solved))
            for episode in group:
                episode.metrics[SHORTEST] = shortest
