"""λ that falls when its terms have nothing left to teach: by hand, and as properties of any training."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

import pytest
from stored import chain_task, make_episode, wide_task

from rewards.parl_reward import Parl
from rewards.schedule.saturation import SHARE, Saturation, pays
from rewards.score import score_episode
from rollouts.episode import Episode, EpisodeStatus

STEPS = 40
REWARD = Parl(
    schedule="saturation", saturation=Saturation(window=3, fall=0.1), anneal=1.0, validity="any", parallel_cap=4
)


def group(number: int, *spawned: bool, family: str = "wide", finish: float = 1.0) -> list[Episode]:
    """Scored attempts at one task; their ``finish`` is as given."""
    task = replace(wide_task(number), family=family)
    found = []
    for index, spawning in enumerate(spawned):
        episode = make_episode(task, index, spawning=spawning)
        episode.status = EpisodeStatus.ANSWERED
        score_episode(episode, REWARD, REWARD.weights(0, STEPS))
        episode.rewards["finish"] = finish * spawning
        found.append(episode)
    return found


LEARNED = group(1, True, True, True, True)
HALF = group(1, True, True, False, False)
NEVER = group(1, False, False, False, False)
LOST = group(1, True, True, True, True, finish=0.5)


def shares(steps: list[list[Episode]], reward: Parl = REWARD, seen: dict | None = None, first: int = 0) -> list[float]:
    """λ1 by its start, in every step in turn and after the last."""
    seen, found = seen or {}, []
    for step, episodes in enumerate(steps, first):
        found.append(reward.weights_after(seen, step, STEPS)["parallel"] / reward.lambda_parallel)
        seen = reward.observed(seen, episodes, step, STEPS)
    return [*found, reward.weights_after(seen, first + len(steps), STEPS)["parallel"] / reward.lambda_parallel]


def test_a_saturated_run_falls_as_soon_as_the_window_is_full_and_in_the_given_time():
    assert shares([LEARNED] * 8) == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0])


@pytest.mark.parametrize("shown", [HALF, NEVER, LOST], ids=["still varies", "never spawns", "does not return"])
def test_a_run_that_is_not_saturated_keeps_its_lambda_until_the_bound_and_ends_without_it(shown: list[Episode]):
    found = shares([shown] * (STEPS - 1))
    assert found[:36] == [1.0] * 36 and found[36:] == pytest.approx([0.75, 0.5, 0.25, 0])
    assert found == pytest.approx([REWARD.weights(step, STEPS)["parallel"] / 0.3 for step in range(STEPS)])


def test_saturation_is_earlier_where_it_is_learned_earlier():
    def zero(unsure: int) -> int:
        return shares([HALF] * unsure + [LEARNED] * (STEPS - 1 - unsure)).index(0.0)

    found = [zero(unsure) for unsure in (0, 5, 15)]
    assert found == sorted(set(found)) and found[-1] < STEPS - 5


def test_every_family_in_which_sub_agents_pay_has_to_spawn():
    other = group(2, False, False, family="deep")
    assert shares([LEARNED + other] * 20) == [1.0] * 21
    useless = [make_episode(chain_task(3), index, spawning=False) for index in range(2)]
    for episode in useless:
        score_episode(episode, REWARD, REWARD.weights(0, STEPS))
    assert shares([LEARNED + useless] * 20) == shares([LEARNED] * 20)  # there it should not spawn
    assert shares([other] + [LEARNED] * 20)[-1] == 1.0  # its last rate counts until the family comes again


def test_families_where_direct_calls_win_hold_nothing_up_if_the_others_are_named():
    shallow = group(2, False, False, family="list")
    named = REWARD.model_copy(update={"saturation": REWARD.saturation.model_copy(update={"families": ("wide",)})})
    assert shares([LEARNED + shallow] * 8) == [1.0] * 9
    assert shares([LEARNED + shallow] * 8, named) == shares([LEARNED] * 8)
    assert shares([shallow] * 8, named) == [1.0] * 9  # nothing measured


def test_after_a_fall_it_never_rises_again():
    found = shares([LEARNED] * 5 + [NEVER] * (STEPS - 6))
    assert found[5:36] == [pytest.approx(0.25)] * 31 and found == sorted(found, reverse=True)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("form", ["additive", "convex"])
def test_lambda_never_rises_and_is_zero_in_the_last_step_whatever_training_shows(seed: int, form: str):
    rng = Random(seed)
    saturation = Saturation(window=rng.randint(1, 6), fall=rng.uniform(0.01, 1), variance=rng.choice((0.0, 0.01, 1.0)))
    change = {"saturation": saturation, "anneal": rng.uniform(0.05, 1), "form": form}
    reward = REWARD.model_copy(update=change)
    steps = [rng.choice((LEARNED, LEARNED, HALF, NEVER, LOST)) for _ in range(STEPS - 1)]
    found = shares(steps, reward)
    assert found == sorted(found, reverse=True) and found[-1] == 0.0 and all(0 <= share <= 1 for share in found)
    assert not any(share for step, share in enumerate(found) if step >= reward.anneal * STEPS)
    if form == "convex":
        weights = reward.weights_after({SHARE: 0.5}, 0, 10**6)
        assert weights["solved"] == 1 - weights["parallel"] == 1 - 0.5 * reward.lambda_parallel


@pytest.mark.parametrize("kill", [1, 4, 6, 20])
def test_a_state_that_was_written_and_read_continues_to_the_bit(kill: int):
    rng = Random(3)
    steps = [rng.choice((LEARNED, LEARNED, LEARNED, HALF)) + group(5, True, rng.random() < 0.9) for _ in range(30)]
    seen: dict[str, float] = {}
    for step, episodes in enumerate(steps[:kill]):
        seen = REWARD.observed(seen, episodes, step, STEPS)
    kept = json.loads(json.dumps(seen))
    assert shares(steps)[kill:] == shares(steps[kill:], seen=kept, first=kill)


def test_an_episode_alone_is_scored_with_the_share_of_its_step():
    seen: dict[str, float] = {}
    for step in range(4):
        seen = REWARD.observed(seen, LEARNED, step, STEPS)
    assert REWARD.told(seen) == {SHARE: seen[SHARE]} and 0 < seen[SHARE] < 1
    assert REWARD.weights_after(REWARD.told(seen), 4, STEPS) == REWARD.weights_after(seen, 4, STEPS)
    assert REWARD.weights_after({}, 4, STEPS) == REWARD.weights(4, STEPS)  # of a run with another schedule


def test_other_schedules_and_a_single_agent_have_no_state():
    for reward in (Parl(), Parl(schedule="cosine"), REWARD.alone()):
        assert reward.observed({}, LEARNED, 0, STEPS) == {} == reward.shown({}) == reward.told({})
    assert Parl().weights_after({SHARE: 0.0}, 3, STEPS) == Parl().weights(3, STEPS)
    assert REWARD.held_out()["parallel"] == REWARD.held_out()["finish"] == 0.0


def test_void_episodes_and_tasks_that_cannot_be_split_show_nothing():
    void = group(7, False, False)
    for episode in void:
        episode.status = EpisodeStatus.FAILED
    assert REWARD.observed({}, void, 0, STEPS) == {"steps": 1, SHARE: 1.0}
    task = wide_task(1)
    assert pays(task) and not pays(chain_task(2))
    assert pays(replace(task, oracle=None)) and not pays(replace(wide_task(1, width=1), oracle=None))
    assert pays(replace(chain_task(2), oracle=None))  # nobody knows
