"""The reward's parts, their weights over time, and their metrics, with numbers worked out by hand."""

import subprocess
import sys
from dataclasses import replace

import pytest

from envs.base import ErrorKind, Gold, Oracle, Role, Score, Task, TaskGroup, ToolCall, ToolResult
from envs.world.tasks import GROUPS
from rewards.aggregate import aggregate, duplicate_rate, evaluation_table
from rewards.base import Reward
from rewards.group import note_groups
from rewards.parl_reward import SHORTEST, Parl
from rewards.schedule import annealed
from rewards.score import score_episode
from rollouts.config import BudgetConfig
from rollouts.costs import LatencyModel
from rollouts.episode import CUT, Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.swarm.budget import critical_budget

PARL = Parl(parallel_cap=4)
WEIGHTS = {"parallel": 0.3, "finish": 0.1, "critical": 0.25}


ORACLE = Oracle(serial_steps=8, parallel_steps=4, width=4)


def make_task(family="wide", width=4, oracle=ORACLE, key="k"):
    return Task(
        key=key,
        family=family,
        split="test",
        prompt="p",
        gold=Gold(kind="exact", answers=("yes",)),
        oracle=oracle,
        width=width,
    )


def make_episode(task=None, finished=(), turns=2, answer="yes", status=EpisodeStatus.ANSWERED, budget=0, index=0):
    """Sub-agents take one turn with one call each and start in the first turn; ``finished``: which returned news."""
    spawned = [f"0/{i}" for i in range(len(finished))]
    root = [Turn(start=i, end=i + 1) for i in range(turns)]
    if spawned:
        root[0].spawned = spawned
    traces = [Trace(agent_id="0", role=Role.ORCHESTRATOR, turns=root, mask=[False, True, True], trainable=True)]
    for agent_id, done in zip(spawned, finished, strict=True):
        calls = [ToolCall(id="functions.look:0", name="look", arguments={})]
        traces.append(
            Trace(
                agent_id=agent_id,
                role=Role.SUBAGENT,
                parent="0",
                parent_turn=0,
                prompt=f"mass of {agent_id}",
                message=f"mass {agent_id} kg{agent_id[2:]}" if done else "",
                status=TraceStatus.FINISHED if done else TraceStatus.OVER_BUDGET,
                turns=[Turn(start=0, end=1, calls=calls)],
                mask=[True],
            )
        )
    return Episode(
        task=task or make_task(),
        index=index,
        seed=0,
        traces=traces,
        status=status,
        answer=answer,
        critical_budget=budget,
    )


def scored(*args, **kwargs):
    episode = make_episode(*args, **kwargs)
    score_episode(episode, PARL, WEIGHTS)
    return episode


def parts_of(*args, **kwargs):
    return scored(*args, **kwargs).rewards


def test_parts_by_hand():
    # 3 critical steps (2 turns + 1) of 8; 2 sub-agents of 4, of which one returned news
    parts = parts_of(finished=[True, False])
    assert parts == {"perf": 1.0, "parallel": 0.25, "finish": 0.5, "critical": 3 / 8, "total": parts["total"]}
    assert parts["total"] == pytest.approx(1 + 0.075 + 0.05 - 0.09375)


def test_counting_all_subagents_is_the_reports_plain_form():
    episode = make_episode(finished=[True, False])
    assert Parl(parallel_cap=4, validity="any").parts(episode, None)["parallel"] == 0.5


def test_subagents_beyond_the_parts_of_a_task_are_not_paid():
    episode = make_episode(make_task(width=2), finished=[True] * 4)
    assert PARL.parts(episode, None)["parallel"] == 0.5
    unknown = make_episode(make_task(width=1, oracle=None), finished=[True] * 4)
    assert PARL.parts(unknown, None)["parallel"] == 1.0


def test_a_wrong_answer_pays_as_much_as_none():
    wrong = scored(turns=1, answer="no")
    assert (wrong.rewards["critical"], wrong.rewards["total"]) == (2.0, -0.5)
    assert Parl(critical_failed="cost").parts(wrong, Score(value=0.0))["critical"] == 1 / 8
    assert PARL.parts(wrong, Score(value=-1.0, low=-1.0))["critical"] == 2.0
    assert PARL.parts(wrong, Score(value=-0.5, low=-1.0))["critical"] == 1 / 8
    assert PARL.parts(wrong, None)["critical"] == 1 / 8  # nothing scores it


def test_a_table_is_paid_for_what_is_not_in_the_question_and_reported_as_a_whole():
    gold = Gold(kind="table", columns=("name", "mass"), rows=(("Ann", "1"), ("Bob", "2")))
    task = replace(make_task(), gold=gold, prompt="Give the mass of Ann and Bob.")
    names, half = (
        make_episode(task, answer=f"| name | mass |\n| Ann | {a} |\n| Bob | {b} |") for a, b in ((9, 9), (1, 9))
    )
    for episode in (names, half):
        score_episode(episode, PARL, WEIGHTS)
    assert (names.rewards["perf"], names.metrics["item_f1"], names.metrics["score"]) == (0.0, 0.5, 0.5)
    assert names.rewards["critical"] == 2.0
    assert (half.rewards["perf"], half.metrics["item_f1"], half.metrics["row_f1"]) == (0.5, 0.75, 0.5)
    score_episode(half, Parl(cells="all"), WEIGHTS)
    assert half.rewards["perf"] == 0.75


def test_parallel_saturates_at_the_cap():
    assert parts_of(finished=[True] * 5)["parallel"] == 1.0


def test_not_spawning_never_earns_more_finish_reward_than_spawning():
    assert parts_of()["finish"] == 0.0
    assert parts_of(finished=[False, False])["finish"] == 0.0
    assert parts_of(finished=[True])["finish"] == 1.0


@pytest.mark.parametrize("status", [s for s in EpisodeStatus if s is not EpisodeStatus.ANSWERED])
def test_only_an_answered_episode_has_performance(status):
    assert parts_of(status=status)["perf"] == 0.0


def test_the_critical_term_refers_to_the_oracle_then_the_budget_then_nothing():
    assert parts_of(turns=4)["critical"] == 0.5
    assert parts_of(turns=40)["critical"] == 2.0
    user = make_task(oracle=None)
    assert parts_of(user, turns=4, budget=10)["critical"] == pytest.approx(0.4)
    assert parts_of(user, turns=4)["critical"] == 0.0


@pytest.mark.parametrize("status", [s for s in EpisodeStatus if s is not EpisodeStatus.ANSWERED])
def test_without_an_answer_the_critical_term_is_two_however_little_was_spent(status):
    assert parts_of(turns=1, status=status)["critical"] == 2.0
    assert parts_of(make_task(oracle=None), turns=1, budget=10, status=status)["critical"] == 2.0
    assert parts_of(make_task(oracle=None), turns=1, status=status)["critical"] == 0.0
    scored_one = scored(turns=1, status=status)
    assert scored_one.rewards["total"] == -0.25 * 2


def test_with_all_lambdas_zero_a_useless_spawn_still_costs_something():
    serial, spawning = make_episode(turns=3), make_episode(turns=3, finished=[True])
    for episode in (serial, spawning):
        score_episode(episode, PARL, PARL.held_out())
    assert spawning.rewards["total"] < serial.rewards["total"]


def test_lambda_falls_linearly_and_ends_in_a_zero_phase():
    values = [annealed(0.4, 0.5, step, 40) for step in range(41)]
    assert [values[0], values[5], values[10], values[19]] == pytest.approx([0.4, 0.3, 0.2, 0.02])
    assert set(values[20:]) == {0.0}


@pytest.mark.parametrize("total_steps", [1, 2, 7, 40])
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.99, 1.0])
def test_the_last_step_is_always_a_lambda_zero_step(total_steps, fraction):
    values = [annealed(0.3, fraction, step, total_steps) for step in range(total_steps)]
    assert values[-1] == 0.0
    assert values == sorted(values, reverse=True)


def test_the_weights_of_a_step_are_each_their_own_and_an_evaluation_pays_for_no_spawning():
    reward = Parl(lambda_parallel=0.4, lambda_finish=0.1, anneal=0.5, critical_penalty=0.25)
    assert reward.weights(0, 40) == {"parallel": 0.4, "finish": 0.1, "critical": 0.25}
    falling = {"parallel": pytest.approx(0.3), "finish": pytest.approx(0.075), "critical": 0.25}
    assert reward.weights(5, 40) == falling
    assert reward.weights(39, 40) == reward.held_out() == {"parallel": 0.0, "finish": 0.0, "critical": 0.25}
    assert reward.alone().weights(0, 40) == reward.held_out()


class Terse(Reward):
    """Pays for short answers."""

    name: str = "terse"
    value: object = 0.5

    def parts(self, episode, outcome):
        return {"short": self.value, **({"total": 1.0} if self.name == "summed" else {})}

    def weights(self, step, steps):
        return {"short": 0.25}


def test_a_reward_of_ones_own_is_scored_and_averaged_by_the_names_of_its_parts():
    episodes = [make_episode(), make_episode(answer="no")]
    for episode in episodes:
        score_episode(episode, Terse(), Terse().weights(0, 1))
    assert episodes[0].rewards == {"perf": 1.0, "short": 0.5, "total": 1.125}
    metrics = aggregate(episodes, Terse(), Terse().weights(0, 1))
    assert (metrics["reward/short"], metrics["reward/weighted/short"], metrics["reward/total"]) == (0.5, 0.125, 0.625)
    assert metrics["reward/weighted/perf"] == 0.5 and "reward/parallel" not in metrics
    score_episode(episodes[0], Terse(), {})
    assert episodes[0].rewards["total"] == 1.5  # a part without a weight counts once


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"value": float("nan")}, r"rewards.name=terse: short = nan of k#0 is no finite number"),
        ({"value": float("inf")}, r"short = inf"),
        ({"value": "good"}, r"short = 'good' of k#0 is no finite number"),
        ({"name": "summed"}, r"a part is called total, which is their sum: rename it"),
    ],
)
def test_a_part_that_is_no_number_is_named(settings, said):
    with pytest.raises(ValueError, match=said):
        score_episode(make_episode(), Terse(**settings), {"short": 0.25})


def test_the_critical_budget_follows_the_oracle():
    def allowed(task: Task, factor: float) -> int:
        return critical_budget(task, BudgetConfig(critical_factor=factor))

    assert allowed(make_task(), 1.5) == 16
    assert allowed(make_task(oracle=Oracle(serial_steps=10, parallel_steps=4, width=4)), 1.1) == 15
    uneven = make_task(oracle=Oracle(serial_steps=50, parallel_steps=4, width=4))
    assert 1.1 * 50 > 55 and allowed(uneven, 1.1) == 59
    assert allowed(make_task(oracle=Oracle(serial_steps=5, parallel_steps=5, width=0)), 1.5) == 12


def test_without_an_oracle_the_critical_budget_is_what_one_agent_may_take_alone():
    free = make_task(oracle=None)
    assert critical_budget(free, BudgetConfig(orchestrator_steps=30)) == 30
    assert critical_budget(free, BudgetConfig(critical_steps=9)) == 9
    assert critical_budget(free, BudgetConfig(critical_steps=0)) == 0
    assert critical_budget(make_task(), BudgetConfig(critical_steps=9)) == 16


def critical_of(episode):
    """Its part for the steps that it took, also of a wrong answer."""
    return Parl(critical_failed="cost").parts(episode, None)["critical"]


def test_without_an_oracle_critical_steps_are_compared_with_the_groups_shortest_success():
    free = make_task(oracle=None)
    quick, slow, wrong = (
        make_episode(free, turns=4),
        make_episode(free, turns=6),
        make_episode(free, turns=2, answer="no"),
    )
    lost = make_episode(free, turns=3, status=EpisodeStatus.FAILED)
    known = make_episode(make_task(key="known"), turns=4)
    for episode in (quick, slow, wrong):
        episode.critical_budget = 12
    note_groups([quick, slow, wrong, lost, known], PARL)
    assert SHORTEST not in known.metrics
    assert [critical_of(one) for one in (quick, slow, wrong)] == [1.0, 1.5, 0.5]
    score_episode(slow, Parl(critical_reference="budget"), WEIGHTS)
    assert slow.rewards["critical"] == 0.5
    score_episode(slow, PARL, WEIGHTS)  # alone, from what was noted
    assert slow.rewards["critical"] == 1.5 and slow.metrics[SHORTEST] == 4


def test_without_a_success_in_the_group_the_budget_stays_the_reference():
    wrong = make_episode(make_task(oracle=None), turns=3, answer="no")
    wrong.critical_budget = 12
    note_groups([wrong], PARL)
    assert SHORTEST not in wrong.metrics and critical_of(wrong) == 0.25


def test_scoring_fills_rewards_and_metrics_and_may_be_repeated():
    episode = make_episode(finished=[True, False])
    episode.metrics["note"] = "kept"
    for _ in range(2):
        score_episode(episode, PARL, WEIGHTS)
    assert episode.rewards == pytest.approx(
        {"perf": 1.0, "parallel": 0.25, "finish": 0.5, "critical": 0.375, "total": 1.03125}
    )
    assert episode.metrics == {
        "note": "kept",
        "item_f1": 1.0,
        "row_f1": 1.0,
        "values_f1": 1.0,
        "found_f1": 1.0,
        "score": 1.0,
        "success": 1,
        "critical_steps": 3,
        "total_steps": 4,
        "path_tokens": 3,
        "total_tokens": 4,
        "makespan_s": pytest.approx(1 + 3 * (0.3 + 0.016)),
        "makespan_capped_s": pytest.approx(1 + 3 * (0.3 + 0.016)),
        "tool_calls": 2,
        "subagents": 2,
        "spawned": 1,
        "finish_rate": 0.5,
        "tokens_orchestrator": 2,
        "tokens_subagent": 2,
        "useless_spawn": 0,
        "direct_parallel": 0,
    }


def test_sampled_tokens_are_counted_by_role_and_without_what_was_read():
    episode = make_episode(finished=[True, True])
    episode.orchestrator.turns[:] = [Turn(start=10, end=13, spawned=["0/0", "0/1"]), Turn(start=20, end=24)]
    episode.subagents[0].turns[:] = [Turn(start=5, end=6)]
    episode.subagents[1].turns[:] = [Turn(start=5, end=10), Turn(start=30, end=35)]
    score_episode(episode, PARL, WEIGHTS)
    assert (episode.metrics["tokens_orchestrator"], episode.metrics["tokens_subagent"]) == (3 + 4, 1 + 5 + 5)


def test_a_table_has_its_own_score_of_rows_and_succeeds_only_whole():
    rows = (("a", "1"), ("b", "2"))
    gold = Gold(kind="table", columns=("N", "V"), unique_columns=("N",), rows=rows)
    task = replace(make_task(), gold=gold)
    for wrong, item, row, success in (("2", 1.0, 1.0, 1), ("3", 0.75, 0.5, 0)):
        episode = make_episode(task, answer=f"| N | V |\n| - | - |\n| a | 1 |\n| b | {wrong} |")
        score_episode(episode, PARL, WEIGHTS)
        metrics = episode.metrics
        assert (metrics["item_f1"], metrics["row_f1"], metrics["success"]) == (pytest.approx(item), row, success)
        assert episode.rewards["perf"] == pytest.approx(item)


def test_an_unanswered_episode_has_no_item_f1_even_with_a_right_answer():
    episode = scored(status=EpisodeStatus.OVER_BUDGET)
    assert (episode.metrics["item_f1"], episode.metrics["success"], episode.rewards["perf"]) == (0.0, 0, 0.0)


CHAIN = make_task(family="chain", width=1, oracle=Oracle(serial_steps=4, parallel_steps=4, width=0), key="c")


def test_turns_that_cannot_be_read_or_were_cut_are_counted_over_all_agents():
    first, second = make_episode(finished=[True]), make_episode()
    call = ToolCall(id="c", name="search", arguments={})
    first.orchestrator.turns[:] = [Turn(start=0, end=1, calls=[call, call]), Turn(start=1, end=2, malformed=CUT)]
    first.subagents[0].turns[:] = [Turn(start=0, end=1, malformed="not JSON")]
    second.orchestrator.turns[:] = [Turn(start=0, end=1)]
    for episode in (first, second):
        score_episode(episode, PARL, WEIGHTS)
    metrics = aggregate([first, second])
    assert (metrics["turns/unread"], metrics["turns/cut"], metrics["turns/calls"]) == (1 / 4, 1 / 4, 1.0)


def test_aggregate_by_hand():
    episodes = [
        scored(finished=[True, False]),  # 3 critical steps
        scored(turns=7, answer="no"),  # 7
        scored(CHAIN, turns=4),  # 4
        scored(CHAIN, turns=4, finished=[True]),  # 5, useless
        scored(CHAIN, turns=50, status=EpisodeStatus.FAILED),
    ]
    metrics = aggregate(episodes)
    assert metrics["episodes/answered"] == 4 and metrics["episodes/failed"] == 1
    assert metrics["episodes/malformed"] == metrics["episodes/over_budget"] == 0
    assert metrics["reward/perf"] == pytest.approx(3 / 4)
    assert metrics["reward/parallel"] == pytest.approx(0.25 / 4)  # a chain's sub-agent does not count
    assert metrics["reward/finish"] == pytest.approx(0.5 / 4)
    assert metrics["reward/critical"] == pytest.approx((3 / 8 + 2 + 1 + 5 / 4) / 4)
    assert metrics["reward/total"] == pytest.approx(0.75 + 0.3 * 0.0625 + 0.1 * 0.125 - 0.25 * 1.15625)
    assert metrics["steps/critical"] == pytest.approx(19 / 4)
    assert metrics["steps/critical_p50"] == pytest.approx(4.5)
    assert metrics["steps/critical_p95"] == pytest.approx(6.7)
    assert metrics["steps/total"] == pytest.approx((4 + 7 + 4 + 5) / 4)
    assert metrics["swarm/subagents"] == pytest.approx(3 / 4)
    assert metrics["swarm/spawn_rate"] == pytest.approx(0.5)
    assert metrics["swarm/spawn_rate/chain"] == metrics["swarm/spawn_rate/wide"] == 0.5
    assert metrics["swarm/finish_rate"] == pytest.approx(0.75)
    assert metrics["swarm/useless_spawn_rate"] == 0.5
    assert metrics["perf/item_f1/wide"] == 0.5 and metrics["perf/item_f1/chain"] == 1.0
    assert metrics["perf/success"] == 0.75
    assert metrics["steps/critical/wide"] == 5.0 and metrics["steps/critical/chain"] == 4.5


def test_weighted_parts_add_up_to_the_total():
    episodes = [scored(finished=[True, False]), scored(turns=7, answer="no"), scored(CHAIN, turns=4)]
    metrics = aggregate(episodes, PARL, WEIGHTS)
    weighted = {part: metrics[f"reward/weighted/{part}"] for part in ("perf", "parallel", "finish", "critical")}
    assert weighted == pytest.approx(
        {
            "perf": 2 / 3,
            "parallel": 0.3 * 0.25 / 3,
            "finish": 0.1 * 0.5 / 3,
            "critical": -0.25 * (3 / 8 + 2 + 1) / 3,
        }
    )
    assert sum(weighted.values()) == pytest.approx(metrics["reward/total"])
    assert not [name for name in aggregate(episodes) if name.startswith("reward/weighted")]


def asking(*prompts):
    episode = scored(finished=[True] * len(prompts))
    for trace, prompt in zip(episode.subagents, prompts, strict=True):
        trace.prompt = prompt
    return episode


def test_the_duplicate_rate_is_the_share_of_assignments_that_were_made_before():
    assert duplicate_rate(asking("Find A", "find  a", "find b", " FIND A ")) == 0.5  # two of four
    assert duplicate_rate(asking("a", "b", "c")) == 0.0
    assert duplicate_rate(asking()) == 0.0
    episodes = [asking("a", "A", "b", "c"), asking("a", "b"), scored(), scored()]
    assert aggregate(episodes)["swarm/duplicate_rate"] == pytest.approx((0.25 + 0.0) / 2)  # over those that spawned


def test_latencies_are_of_models_answers_and_of_tools_that_are_no_sub_agents():
    episode = make_episode(finished=[True])
    spawning, last = episode.orchestrator.turns
    spawning.calls = [ToolCall(id="c", name="assign_task", arguments={})]
    spawning.results = [ToolResult(text="late", latency_s=99.0)]
    spawning.t_start, spawning.t_model, spawning.t_end = 0.0, 1.0, 100.0
    last.t_start, last.t_model, last.t_end = 100.0, 103.0, 103.0
    only = episode.subagents[0].turns[0]
    only.calls = [ToolCall(id=f"c{i}", name="search", arguments={}) for i in range(3)]
    only.results = [
        ToolResult(text="x", latency_s=s, error=e) for s, e in ((1, None), (2, None), (6, ErrorKind.SERVER))
    ]
    only.t_start, only.t_model, only.t_end = 1.0, 3.0, 9.0
    score_episode(episode, PARL, WEIGHTS)
    metrics = aggregate([episode])
    assert metrics["latency/model_p50"] == 2.0 and metrics["latency/model_p95"] == pytest.approx(2.9)  # 1, 2, 3 s
    assert metrics["latency/tool_p50"] == 2.0 and metrics["latency/tool_p95"] == pytest.approx(5.6)  # 1, 2, 6 s
    assert metrics["rollouts/tool_error_rate"] == pytest.approx(1 / 3)
    assert metrics["swarm/parallelism"] == pytest.approx(3 / 3)


def test_parallelism_is_all_turns_by_critical_ones():
    assert aggregate([scored(finished=[True] * 4)])["swarm/parallelism"] == pytest.approx(6 / 3)


@pytest.mark.parametrize("status", [EpisodeStatus.FAILED, EpisodeStatus.CANCELLED])
def test_what_the_machine_ended_is_in_no_mean(status):
    good = scored(finished=[True])
    metrics = aggregate([good, scored(turns=50, status=status)])
    assert metrics["episodes/answered"] == metrics[f"episodes/{status}"] == 1
    assert metrics["steps/critical"] == good.metrics["critical_steps"] and metrics["reward/perf"] == 1.0


def test_means_over_nothing_are_left_out():
    assert aggregate([]) == {f"episodes/{status}": 0.0 for status in EpisodeStatus}
    assert "swarm/finish_rate" not in aggregate([scored()])
    assert "swarm/useless_spawn_rate" not in aggregate([scored()])


def test_the_evaluation_table_groups_by_family_and_width():
    episodes = [
        scored(make_task(width=12, key="a"), finished=[True, True]),
        scored(make_task(width=11, key="b"), turns=5, answer="no"),
        scored(CHAIN, turns=4),
        scored(CHAIN, turns=4, status=EpisodeStatus.FAILED, index=1),
    ]
    table = evaluation_table(episodes, GROUPS)
    assert list(table) == ["wide", "wide_12", "list", "swap", "chain", "single_fact", "all"]
    assert table["wide"] == {
        "item_f1": 0.5,
        "row_f1": 0.5,
        "values_f1": 0.5,
        "success": 0.5,
        "critical_steps": 4.0,
        "total_steps": 4.5,
        "path_tokens": 4.0,
        "total_tokens": 4.5,
        "makespan_s": pytest.approx(0.5 + 4 * (0.3 + 0.016)),
        "makespan_capped_s": pytest.approx(0.5 + 4 * (0.3 + 0.016)),
        "subagents": 1.0,
        "spawn_rate": 0.5,
        "direct_parallel_rate": 0.0,
        "finish_rate": 1.0,
        "tokens_per_success": 9.0,
        "n_tasks": 2,
    }
    assert table["wide_12"]["n_tasks"] == 1 and table["wide_12"]["critical_steps"] == 3.0
    assert table["chain"]["item_f1"] == 0.5  # the failed episode counts
    assert table["chain"]["finish_rate"] is None and table["chain"]["n_tasks"] == 1
    assert table["all"]["n_tasks"] == 3
    assert table["swap"] == {**dict.fromkeys(table["wide"]), "n_tasks": 0}


def test_families_without_a_group_get_a_row_each():
    episodes = [scored(make_task(width=2, key="a")), scored(CHAIN, turns=4)]
    assert list(evaluation_table(episodes)) == ["chain", "wide", "all"]
    late = TaskGroup(name="chain", family="wide", least_width=2)  # a group that is called as another family is
    table = evaluation_table(episodes, [late])
    assert list(table) == ["chain", "family chain", "all"]
    assert (table["chain"]["critical_steps"], table["family chain"]["critical_steps"]) == (2, 4)


def test_rewards_import_without_torch():
    modules = "rewards.score, rewards.aggregate, rollouts.swarm.budget"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("unit", ["tokens", "seconds"])
def test_tokens_and_seconds_are_compared_with_the_groups_cheapest_success(unit):
    reward = Parl(critical=unit, latency=LatencyModel(first_token_s=0.0, decode_s=1.0, prefill_s=0.0, tool_s=0.0))
    cheap, dear = make_episode(turns=2, finished=[True]), make_episode(turns=6)
    wrong, lost = make_episode(turns=1, answer="no"), make_episode(turns=9, status=EpisodeStatus.OVER_BUDGET)
    note_groups([cheap, dear, wrong, lost], reward)
    for episode in (cheap, dear, wrong, lost):  # each alone, from what was noted
        score_episode(episode, reward, WEIGHTS)
    shares = [episode.rewards["critical"] for episode in (cheap, dear, lost)]
    assert shares == pytest.approx([1.0, 2.0, 2.0])  # 3 and 6 sampled tokens on the path
    assert cheap.metrics["path_tokens"] == 3 and dear.metrics["makespan_s"] == pytest.approx(6.0)


def test_where_no_episode_solved_the_task_tokens_are_compared_with_a_budget_or_the_dearest_episode():
    wrong, longer = make_episode(turns=2, answer="no"), make_episode(turns=4, answer="no")
    plain, budget = Parl(critical="tokens"), Parl(critical="tokens", critical_budget=8)  # nothing scores them below
    note_groups([wrong, longer], plain)
    assert (plain.parts(wrong, None)["critical"], plain.parts(longer, None)["critical"]) == (0.5, 1.0)
    assert budget.parts(wrong, None)["critical"] == 0.25
    assert plain.parts(make_episode(), None)["critical"] == 0.0  # alone, as in an evaluation: there is nothing
    lost = make_episode(status=EpisodeStatus.OVER_BUDGET)
    assert plain.parts(lost, None)["critical"] == 2.0  # but no answer costs what it costs everywhere
    assert Parl().parts(replace(lost, task=replace(lost.task, oracle=None)), None)["critical"] == 0.0  # no reference


def test_the_cheapest_success_is_no_reference_if_the_budget_is_asked_for():
    reward = Parl(critical="tokens", critical_reference="budget", critical_budget=10)
    solved = make_episode(turns=5)
    note_groups([solved], reward)
    assert reward.parts(solved, None)["critical"] == 0.5


def test_costs_of_a_step_and_of_each_family():
    episodes = [scored(turns=4), scored(CHAIN, turns=2, answer="no")]
    metrics = aggregate(episodes)
    assert metrics["cost/path_tokens"] == 3.0 and metrics["cost/path_tokens/chain"] == 2.0
    assert metrics["cost/total_tokens"] == 3.0
    assert metrics["cost/tokens_per_success"] == 6.0  # all tokens, by solved episodes
    assert metrics["cost/makespan_s/wide"] == pytest.approx(4 * (0.3 + 0.016))
    assert "cost/tokens_per_success" not in aggregate(episodes[1:])
