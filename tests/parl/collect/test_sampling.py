"""Dynamic sampling: which groups are left out, which are drawn instead, and that it ends."""

from __future__ import annotations

import pytest

from envs.base import Gold, Role, Task
from parl.collect.sampling import draw_groups, groups, informative
from rollouts.episode import Episode, EpisodeStatus, Trace


def group(key: str, rewards: list[float], failed: tuple[int, ...] = ()) -> list[Episode]:
    task = Task(key=key, family="wide", split="train", prompt="p", gold=Gold(kind="exact", answers=("x",)))
    trace = Trace(agent_id="0", role=Role.ORCHESTRATOR, trainable=True, tokens=[1], mask=[True], logprobs=[-1.0])
    return [
        Episode(
            task=task,
            index=index,
            seed=0,
            traces=[trace],
            status=EpisodeStatus.FAILED if index in failed else EpisodeStatus.ANSWERED,
            rewards={"total": reward},
        )
        for index, reward in enumerate(rewards)
    ]


def keys(episodes: list[Episode]) -> list[str]:
    return [episode.task.key for episode in episodes]


def test_groups_of_equal_rewards_are_left_out_and_the_others_stay_whole():
    episodes = group("flat", [0.3, 0.1 + 0.2]) + group("a", [0.0, 1.0]) + group("zero", [0.0, 0.0])
    assert keys(informative(episodes)) == ["a", "a"]


def test_an_episode_that_failed_does_not_make_a_group_differ():
    assert informative(group("a", [1.0, 1.0, 0.0], failed=(2,))) == []
    assert len(informative(group("a", [1.0, 0.5, 0.0], failed=(2,)))) == 2
    assert informative(group("a", [1.0, 0.0], failed=(0, 1))) == []


@pytest.mark.parametrize(
    ("flat", "rounds", "drawn"),
    [
        ((), 5, 3),
        ((0, 2), 0, 3),  # dropped, and nothing in their place
        ((0, 2), 5, 5),
        ((0, 2, 3), 5, 6),  # one of those drawn in their place is flat too
        ((0, 2, 3), 1, 5),
        (range(100), 4, 15),  # all the same: it gives up
    ],
)
def test_as_many_tasks_are_drawn_as_are_missing_and_no_oftener_than_allowed(flat, rounds: int, drawn: int):
    asked: list[tuple[int, int]] = []

    def draw(first: int, count: int) -> list[Episode]:
        asked.append((first, count))
        numbers = range(first, first + count)
        return [e for n in numbers for e in group(str(n), [0.5, 0.5] if n in flat else [0.0, float(n + 1)])]

    episodes = draw_groups(draw, 3, rounds)
    assert sorted(set(keys(episodes)), key=int) == [str(n) for n in range(drawn)]
    assert sum(count for _, count in asked) == drawn and len(asked) <= 1 + rounds
    assert groups(informative(episodes)) == min(3, drawn - len([n for n in flat if n < drawn]))
