"""Group advantages and rows, by hand."""

from random import Random

import numpy as np
import pytest
from cut_rows import split_row

from envs.base import Gold, Role, Task
from parl.learn.advantage import counterfactual_credit, group_advantages
from parl.learn.rows import denominator, episode_rows, step_rows
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus


def make_episode(key="a", index=0, total=0.0, status=EpisodeStatus.ANSWERED, subagents=1, routes=False):
    task = Task(key=key, family="wide", split="train", prompt="p", gold=Gold(kind="exact", answers=("x",)))
    traces = [
        Trace(
            agent_id="0",
            role=Role.ORCHESTRATOR,
            trainable=True,
            tokens=[5, 6, 7, 8, 9],
            mask=[False, True, True, False, True],
            logprobs=[0.0, -1.0, -2.0, 0.0, -3.0],
            versions=[-1, 0, 0, -1, 0],
            routes=np.arange(20, dtype=np.int16).reshape(5, 2, 2) if routes else None,
        )
    ]
    for i in range(subagents):
        traces.append(
            Trace(agent_id=f"0/{i}", role=Role.SUBAGENT, parent="0", tokens=[1], mask=[True], logprobs=[-1.0])
        )
    return Episode(task=task, index=index, seed=0, traces=traces, status=status, rewards={"total": total})


def test_the_advantage_is_reward_minus_group_mean_and_is_not_scaled():
    assert group_advantages([1.0, 0.0, 0.5, 0.5]) == [0.5, -0.5, 0.0, 0.0]
    assert group_advantages([3.0]) == [0.0]
    assert group_advantages([]) == []


def test_rows_carry_the_advantage_on_sampled_tokens_only():
    (row,) = episode_rows(make_episode(routes=True), 0.25)
    assert row.key == ("a", 0, "0")
    assert row.tokens.tolist() == [5, 6, 7, 8, 9]
    assert row.advantages.tolist() == [0.0, 0.25, 0.25, 0.0, 0.25]
    assert row.logprobs.tolist() == [0.0, -1.0, -2.0, 0.0, -3.0]
    assert row.routes.shape == (5, 2, 2)
    dtypes = [a.dtype for a in (row.tokens, row.mask, row.logprobs, row.advantages, row.routes)]
    assert dtypes == [np.int32, np.bool_, np.float32, np.float32, np.int16]
    assert row.trained == 3


def test_frozen_subagents_give_no_rows_and_trainable_ones_share_the_episodes_advantage():
    episode = make_episode(subagents=3)
    assert len(episode_rows(episode, 1.0)) == 1
    episode.traces[2].trainable = True
    assert [row.key[2] for row in episode_rows(episode, 1.0)] == ["0", "0/1"]


def test_the_baseline_is_per_group_and_per_episode_not_per_row():
    episodes = [
        make_episode("a", 0, 1.0, subagents=2),
        make_episode("b", 0, 0.2),
        make_episode("a", 1, 0.0),
        make_episode("b", 1, 0.6),
    ]
    for trace in episodes[0].subagents:
        trace.trainable = True  # three rows of the good episode must not lift the baseline of its group
    rows = step_rows(episodes)
    advantage = {row.key: row.advantages.sum() / row.trained for row in rows}
    assert advantage == pytest.approx(
        {("a", 0, "0"): 0.5, ("a", 0, "0/0"): 0.5, ("a", 0, "0/1"): 0.5}
        | {("a", 1, "0"): -0.5, ("b", 0, "0"): -0.2, ("b", 1, "0"): 0.2}
    )
    assert denominator(rows) == 4 * 3 + 2


def test_failed_episodes_leave_baseline_and_rows():
    episodes = [
        make_episode(total=1.0),
        make_episode(index=1, total=0.0),
        make_episode(index=2, total=-9.0, status=EpisodeStatus.FAILED),
    ]
    rows = step_rows(episodes)
    assert [row.advantages.max() for row in rows] == [0.5, 0.0]
    assert [row.key[1] for row in rows] == [0, 1]
    assert episode_rows(episodes[2], 1.0) == []
    assert denominator(rows) == 6


def test_a_mixture_of_experts_without_routes_is_an_error():
    with pytest.raises(ValueError, match=r"episode a#0, agent 0: no routes"):
        episode_rows(make_episode(), 0.0, routed=True)
    assert episode_rows(make_episode(routes=True), 0.0, routed=True)


def test_a_trace_with_arrays_of_different_lengths_is_an_error():
    episode = make_episode()
    episode.orchestrator.logprobs.pop()
    with pytest.raises(ValueError, match="5 tokens, 5 mask, 4 log-probs"):
        episode_rows(episode, 0.0)


@pytest.mark.parametrize(("pieces", "ends"), [(1, [5]), (2, [3, 5]), (3, [2, 3, 5]), (9, [2, 3, 5])])
def test_split_rows_keep_the_prefix_and_partition_the_mask(pieces, ends):
    (row,) = episode_rows(make_episode(routes=True), 0.5)
    parts = split_row(row, pieces)
    assert [len(part.tokens) for part in parts] == ends
    covered = np.zeros(5, dtype=int)
    for part, end in zip(parts, ends, strict=True):
        assert part.tokens.tolist() == row.tokens[:end].tolist()
        assert part.routes.shape == (end, 2, 2)
        assert (part.advantages != 0).tolist() == part.mask.tolist() == (part.logprobs != 0).tolist()
        covered[:end] += part.mask
    assert covered.tolist() == row.mask.astype(int).tolist()
    assert denominator(parts) == row.trained


def co_trained(key, index, total, *finished):
    """An episode whose sub-agents are trained; ``finished`` says which of them returned a valid message."""
    episode = make_episode(key, index, total, subagents=len(finished))
    for trace, done in zip(episode.subagents, finished, strict=True):
        trace.trainable, trace.status = True, TraceStatus.FINISHED if done else TraceStatus.MALFORMED
    return episode


def by_key(rows):
    return {row.key: row.advantages.sum() / row.trained for row in rows}


GROUP = [
    ("a", 0, 1.0, True, False),
    ("a", 1, 0.5, True),
    ("a", 2, 0.0),
]


def test_by_agent_a_subagent_is_paid_for_its_own_outcome_and_the_orchestrator_as_before():
    episodes = [co_trained(*args) for args in GROUP]
    shared, own = by_key(step_rows(episodes)), by_key(step_rows(episodes, credit="agent"))
    for index in range(3):
        assert own["a", index, "0"] == pytest.approx(shared["a", index, "0"])
    assert shared["a", 0, "0/0"] == shared["a", 0, "0/1"] == shared["a", 0, "0"]
    # earned 1 and 0 (mean 0.5) and 0.5 (mean 0.5): the baseline is the mean of the two episodes' means
    assert [own["a", 0, "0/0"], own["a", 0, "0/1"], own["a", 1, "0/0"]] == pytest.approx([0.5, -0.5, 0.0])


def test_an_episode_of_many_subagents_weighs_no_more_in_their_baseline():
    few, many = co_trained("a", 0, 1.0, True), co_trained("a", 1, 0.0, *[True] * 9)
    own = by_key(step_rows([few, many], credit="agent"))
    assert own["a", 0, "0/0"] == pytest.approx(0.5)
    assert all(own["a", 1, f"0/{i}"] == pytest.approx(-0.5) for i in range(9))


def test_groups_do_not_mix_and_normalised_credit_has_unit_spread():
    episodes = [co_trained(*args) for args in GROUP] + [co_trained("b", 0, 3.0, True), co_trained("b", 1, 3.0, True)]
    own = by_key(step_rows(episodes, credit="agent", normalise_std=True))
    assert own["b", 0, "0/0"] == own["b", 1, "0/0"] == 0.0
    spread = ((own["a", 0, "0/0"] ** 2 + own["a", 0, "0/1"] ** 2) / 2 + own["a", 1, "0/0"] ** 2) / 2
    assert spread == pytest.approx(1.0, rel=1e-4)


def test_frozen_subagents_have_no_part_in_it():
    episodes = [make_episode("a", 0, 1.0, subagents=2), make_episode("a", 1, 0.0)]
    assert by_key(step_rows(episodes, credit="agent")) == by_key(step_rows(episodes))


def test_frozen_subagents_beside_trained_ones_are_not_in_their_baseline():
    episodes = [co_trained("a", 0, 1.0, True), co_trained("a", 1, 0.5, True)]
    before = by_key(step_rows(episodes, credit="agent"))
    frozen = Trace(agent_id="0/1", role=Role.SUBAGENT, parent="0", tokens=[1], mask=[True], logprobs=[-1.0])
    frozen.status = TraceStatus.MALFORMED
    episodes[0].traces.append(frozen)
    assert by_key(step_rows(episodes, credit="agent")) == before


def test_cutting_a_subagents_row_keeps_its_credit_on_every_token():
    rows = step_rows([co_trained(*args) for args in GROUP], credit="agent")
    whole = {row.key: row for row in rows}
    for row in rows:
        total = np.zeros(len(row.tokens), np.float32)
        for piece in split_row(row, 3):
            total[: len(piece.tokens)] += piece.advantages
        np.testing.assert_array_equal(total, whole[row.key].advantages)
    assert denominator(rows) == 3 * 3 + 3


def test_a_subagent_that_failed_in_an_episode_worse_than_nothing_gains_nothing_by_it():
    bad, good = co_trained("a", 0, -1.0, True, False), co_trained("a", 1, -0.5, True)
    own = by_key(step_rows([bad, good], credit="agent"))
    assert own["a", 0, "0/0"] == own["a", 0, "0/1"] == pytest.approx(-0.25)


@pytest.fixture(params=range(20))
def mixed(request) -> tuple[list[float], list[bool]]:
    """Outcomes of a group of both kinds, and who spawned."""
    rng = Random(request.param)
    spawned = [True, False, *(rng.random() < rng.choice((0.2, 0.8)) for _ in range(rng.randint(0, 9)))]
    rng.shuffle(spawned)
    return [rng.uniform(-1, 1) for _ in spawned], spawned


def test_counterfactual_credit_by_hand():
    credit = counterfactual_credit([1.0, 0.5, 0.0, 0.3], [True, False, False, False])
    assert credit == pytest.approx([0.75 * (1 - 0.8 / 3), -0.25 * 0.5, -0.25, -0.25 * 0.7])


@pytest.mark.parametrize("normalise_std", [False, True])
def test_counterfactual_credit_sums_to_zero_in_a_group(mixed, normalise_std):
    outcomes, spawned = mixed
    credit = counterfactual_credit(outcomes, spawned, normalise_std=normalise_std)
    assert sum(credit) == pytest.approx(0, abs=1e-12) and any(credit)


@pytest.mark.parametrize("kind", [True, False])
def test_a_group_of_one_kind_has_no_counterfactual(kind):
    assert counterfactual_credit([1.0, 0.0, 0.5], [kind] * 3, normalise_std=True) == [0.0] * 3
    assert counterfactual_credit([], []) == []


def test_the_decision_is_credited_as_by_the_plain_baseline_and_luck_within_a_kind_by_the_others_share(mixed):
    outcomes, spawned = mixed
    plain, credit = group_advantages(outcomes), counterfactual_credit(outcomes, spawned)
    for kind in (True, False):
        own = [i for i, did in enumerate(spawned) if did is kind]
        assert sum(credit[i] for i in own) == pytest.approx(sum(plain[i] for i in own))
        mean = sum(outcomes[i] for i in own) / len(own)
        for i in own:
            assert plain[i] - credit[i] == pytest.approx(len(own) / len(spawned) * (outcomes[i] - mean))


def test_counterfactual_credit_ignores_what_is_added_to_all_outcomes_and_follows_their_scale(mixed):
    outcomes, spawned = mixed
    credit = counterfactual_credit(outcomes, spawned)
    moved = counterfactual_credit([3 * outcome + 5 for outcome in outcomes], spawned)
    assert moved == pytest.approx([3 * one for one in credit])
    unit = counterfactual_credit(outcomes, spawned, normalise_std=True)
    assert unit == pytest.approx([one / (np.std(outcomes, ddof=1) + 1e-6) for one in credit])


def test_rows_without_a_counterfactual_are_the_plain_ones_and_with_it_have_the_sum():
    episodes = [make_episode("a", 0, 0.9), make_episode("a", 1, 0.4, subagents=0), make_episode("a", 2, 0.1)]
    episodes += [make_episode("b", 0, 1.0), make_episode("b", 1, 0.0)]
    outcomes = {("a", 0): 0.5, ("a", 1): 0.4, ("a", 2): 0.0, ("b", 0): 1.0, ("b", 1): 0.0}

    def outcome(episode):
        return outcomes[episode.task.key, episode.index]

    plain = by_key(step_rows(episodes))
    off = step_rows(episodes, counterfactual=0.0, outcome=outcome)
    assert [row.advantages.tobytes() for row in off] == [row.advantages.tobytes() for row in step_rows(episodes)]
    on = by_key(step_rows(episodes, counterfactual=2.0, outcome=outcome))
    wanted = [(0.5 - 0.4) / 3, 2 / 3 * (0.4 - 0.25), (0.0 - 0.4) / 3]
    assert [on["a", i, "0"] - plain["a", i, "0"] for i in range(3)] == pytest.approx([2 * one for one in wanted])
    assert [on["b", i, "0"] for i in range(2)] == [plain["b", i, "0"] for i in range(2)]  # all spawned
