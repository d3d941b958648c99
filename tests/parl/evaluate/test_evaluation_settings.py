"""An evaluation's requests to rollouts, and its results: settings, attempts, scores, costs, by hand."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from stored import chain_task, make_episode, make_trace, make_turn, wide_task
from tiny import tiny_config

from envs.base import Task
from model.chat.kimi import KimiChat
from parl.collect.pools import RolloutSide
from parl.collect.tasks import Tasks, run_tasks
from parl.config.schema import Config
from parl.evaluate import evaluation as attempts
from parl.evaluate.chat_model import ChatCollector, Served
from parl.evaluate.evaluation import _Asked, _missing, _run_local, _slices, evaluate
from parl.evaluate.measures import Sample, account, attempt, cost, estimates, latest
from parl.evaluate.policies import Policy
from parl.evaluate.scoring import Scoring
from rewards.parl_reward import Parl
from rewards.score import score_episode
from rollouts.engine.chat.client import Usage
from rollouts.episode import Episode, EpisodeStatus
from rollouts.store.outline import Outline, read_outlines, shard_paths
from rollouts.swarm.scoring import by_session

EVAL = {"tasks": 3, "seed": 11, "temperature": 0.3, "top_p": 0.6}
ROLLOUTS = {"temperature": 0.9, "subagent_temperature": 0.1, "group_size": 5, "concurrency": 4}


class Collector:
    """Records requests, and returns made-up episodes."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.served: list[Any] = []
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def serve(self, weights: Any) -> None:
        self.served.append(weights)

    def collect(self, tasks, *, group_size: int, attempts=None, arrived=None, **settings) -> list[Episode]:
        numbers = attempts or [range(group_size)] * len(tasks)
        self.asked.append({"tasks": [t.key for t in tasks], "attempts": [list(n) for n in numbers], **settings})
        groups = [[made(task, index) for index in own] for task, own in zip(tasks, numbers, strict=True)]
        for group in groups if arrived else ():
            arrived(group)
        return [episode for group in groups for episode in group]


def made(task: Task, index: int = 0) -> Episode:
    episode = make_episode(task, index, spawning=True)
    episode.status = EpisodeStatus.ANSWERED
    return episode


@pytest.fixture
def config(tmp_path: Path) -> Config:
    rewards = {"lambda_parallel": 0.4, "lambda_finish": 0.2, "critical_penalty": 0.25, "parallel_cap": 4}
    bounds = {
        "limits": {"agent_s": 9.0, "tool_calls": 7},
        "context": {"orchestrator_tokens": 500},
        "budget": {"turn_tokens": 99},
    }
    return tiny_config(tmp_path, eval=EVAL, rollouts=ROLLOUTS | bounds, rewards=rewards, seed=2)


WANTED = {"seed": 11, "temperature": 0.3, "top_p": 0.6}


def policy(root: Path, label: str, *, spawning: bool) -> Policy:
    (root / label).mkdir(parents=True, exist_ok=True)
    return Policy(label=label, source=root / f"weights-{label}", spawning=spawning, store=root / label, about={})


@pytest.fixture
def collector(tmp_path: Path, monkeypatch) -> Collector:
    made = Collector()
    monkeypatch.setattr(attempts, "load_policy", lambda folder, family: (folder.name, None, None, None))
    monkeypatch.setattr(attempts, "starting_policy", lambda config, **_: tmp_path)
    monkeypatch.setattr(attempts, "local_ray", nullcontext)
    monkeypatch.setattr(attempts, "Collector", lambda *given: made)
    return made


@pytest.mark.parametrize("spawning", [True, False])
def test_an_evaluation_asks_as_the_section_says_pays_for_no_spawning_and_asks_once(
    config, collector, tmp_path: Path, spawning: bool, monkeypatch
):
    monkeypatch.setattr(Tasks, "held_out", lambda tasks: [wide_task(1), chain_task(2)])
    one = policy(tmp_path, "x", spawning=spawning)
    found = evaluate(config, [one], run_tasks(config))
    assert collector.served == ["weights-x"] and collector.closed
    [asked] = collector.asked
    assert asked == {"tasks": ["wide-1", "chain-2"], "attempts": [[0], [0]], "spawning": spawning, **WANTED}
    stored = [outline.episode for outline in read_outlines(shard_paths(one.store))]
    assert len(stored) == 2
    for episode in stored:
        again = made(episode.task)
        score_episode(again, Parl(parallel_cap=4), Parl().held_out())
        assert episode.rewards == again.rewards
    assert evaluate(config, [one], run_tasks(config)) == found and len(collector.asked) == 1


def test_an_evaluation_runs_what_is_missing(config, collector, tmp_path: Path, monkeypatch):
    tasks = [wide_task(1), chain_task(2), wide_task(3)]
    policies = [policy(tmp_path, "a", spawning=True), policy(tmp_path, "b", spawning=False)]
    todo = {"a": {0: [1], 2: [0, 1]}, "b": {1: [0]}}
    monkeypatch.setattr(attempts, "_missing", lambda found, tasks, n: todo[next(labels)])
    labels = iter("ab")
    scoring = Scoring(reward=config.rewards, steps=config.trainer.steps)
    asked = _Asked(tasks=tasks, n=2, scoring=scoring)
    _run_local(policies, asked, RolloutSide.of(config), tmp_path, config.eval)
    assert collector.served == ["weights-a", "weights-b"]
    first, second = collector.asked
    assert first == {"tasks": ["wide-1", "wide-3"], "attempts": [[1], [0, 1]], "spawning": True, **WANTED}
    assert second == {"tasks": ["chain-2"], "attempts": [[0]], "spawning": False, **WANTED}
    stored = list(read_outlines(shard_paths(tmp_path / "a", "a")))
    assert [(o.episode.task.key, o.episode.index) for o in stored] == [("wide-1", 1), ("wide-3", 0), ("wide-3", 1)]
    for outline in stored:
        again = made(outline.episode.task, outline.episode.index)
        score_episode(again, Parl(parallel_cap=4), Parl().held_out())
        assert outline.episode.rewards == pytest.approx(again.rewards)


def test_a_chat_servers_agents_sample_as_the_section_says(config, tokenizer, tmp_path: Path):
    for spawning in (True, False):
        served = Served(url="http://127.0.0.1:9/v1", name="m")
        given = (config.envs.build(), KimiChat(tokenizer), config.rollouts, config.eval)
        with ChatCollector(served, tmp_path, *given, spawning=spawning, score=by_session) as collector:
            settings = collector._settings(Usage())
        assert (settings.temperature, settings.top_p, settings.subagent_temperature) == (0.3, 0.6, 0.1)
        assert settings.spawning == spawning
        assert (settings.budget, settings.limits) == (config.rollouts.budget, config.rollouts.limits)
        assert settings.context == config.rollouts.context


def outline(task: Task, index: int, *, failed: bool = False, mark: str = "") -> Outline:
    episode = made(task, index)
    episode.error = mark
    if failed:
        episode.status = EpisodeStatus.FAILED
    score_episode(episode, Parl(parallel_cap=4), Parl(critical_penalty=0).held_out())
    return Outline(
        episode=episode,
        path=Path("a-000000.parquet"),
        row=0,
        kind="a",
        step=0,
        policy_version=0,
        lengths=[len(trace.tokens) for trace in episode.traces],
    )


def test_failed_attempts_are_missing_and_the_others_are_not():
    tasks = [wide_task(1), chain_task(2)]
    found = {(t.key, i): outline(t, i, failed=(t.key, i) == ("wide-1", 0)) for t, i in ((tasks[0], 0), (tasks[0], 2))}
    assert _missing(found, tasks, 3) == {0: [0, 1], 1: [0, 1, 2]}
    assert _missing(found, tasks[:1], 1) == {0: [0]}


def test_of_several_tries_the_last_that_did_not_fail_counts():
    task = wide_task(1)
    tries = [
        outline(task, 0, failed=True, mark="1"),
        outline(task, 0, mark="2"),
        outline(task, 0, failed=True, mark="3"),
    ]
    assert latest(tries)["wide-1", 0].episode.error == "2"
    assert latest(tries[::-1])["wide-1", 0].episode.error == "2"
    assert latest([*tries, outline(task, 0, mark="4")])["wide-1", 0].episode.error == "4"
    assert latest(tries[:1])["wide-1", 0].episode.void


def test_slices_hold_every_attempt_once_and_no_more_than_their_size():
    todo = {0: [0, 1], 1: [0], 3: [0, 1, 2], 4: [2]}
    assert _slices(todo, 3) == [{0: [0, 1], 1: [0]}, {3: [0, 1, 2]}, {4: [2]}]
    assert _slices(todo, 100) == [todo] and _slices(todo, 1) == [{0: [0, 1]}, {1: [0]}, {3: [0, 1, 2]}, {4: [2]}]


def test_an_attempts_tokens_by_hand():
    """Two turns of 5 sampled tokens after 3 read ones (8 positions a turn), and a sub-agent with one such turn."""
    episode = made(chain_task(1))
    root = make_trace("0", [make_turn(0), make_turn(1)])
    sub = make_trace("0/0", [make_turn(0)])
    episode.traces[:] = [root, sub]
    root.turns[0].spawned = ["0/0"]
    score_episode(episode, Parl(parallel_cap=4), Parl(critical_penalty=0).held_out())
    place = {"path": Path("a"), "row": 0, "kind": "a", "step": 0, "policy_version": 0}
    one = attempt(Outline(episode=episode, lengths=[16, 8], **place))
    assert (one.sampled_tokens, one.prompt_tokens, one.new_prompt_tokens) == (15, 3 + 11 + 3, 16 + 8 - 15)
    assert (one.critical_steps, one.total_steps, one.subagents, one.spawned) == (3, 3, 1, 1.0)
    root.cuts = [8]  # a new context begins there: the second turn was given 3 tokens
    assert attempt(Outline(episode=episode, lengths=[16, 8], **place)).prompt_tokens == 3 + 3 + 3


def sample_of(*values: tuple[float, int, int]) -> Sample:
    """Attempts at one task each: success, sampled and prompt tokens."""
    made_up = []
    for number, (success, sampled, prompt) in enumerate(values):
        one = attempt(outline(chain_task(number), 0))
        changes = {"success": success, "sampled_tokens": sampled, "prompt_tokens": prompt, "new_prompt_tokens": 1}
        made_up.append(type(one)(**{name: getattr(one, name) for name in one.__slots__} | changes))
    return Sample("a", made_up)


def test_an_attempts_score_is_that_of_its_answer_alone():
    one = outline(wide_task(1), 0)
    score_episode(one.episode, Parl(parallel_cap=4), {"parallel": 5.0, "finish": 0.0, "critical": 3.0})
    assert attempt(one).score == one.episode.rewards["perf"] != one.episode.rewards["total"]


def test_pass_and_max_at_k_are_of_the_best_and_avg_of_all_in_the_order_of_their_numbers():
    first = attempt(outline(chain_task(1), 0))
    values = {"t": [(1, 0.4, 0.0), (0, 1.0, 1.0)], "u": [(0, 0.0, 0.0), (1, 0.2, 0.0)]}  # number, score, success
    tries = [
        type(first)(**{name: getattr(first, name) for name in first.__slots__} | given)
        for task, own in values.items()
        for given in ({"task": task, "index": i, "score": score, "success": success} for i, score, success in own)
    ]
    sample = Sample("x", tries)
    assert [one.index for one in sample.by_task["t"]] == [0, 1]
    numbers = estimates(sample, 2)
    wanted = {"avg@2": 0.4, "max@2": 0.6, "pass@2": 0.5, "success": 0.25}
    assert {name: numbers[name].value for name in wanted} == pytest.approx(wanted)


def test_an_account_sums_and_divides_by_what_was_solved():
    assert account(sample_of((1, 10, 100), (0, 20, 200), (1, 30, 300))) == {
        "sampled_tokens": 60,
        "prompt_tokens": 600,
        "new_prompt_tokens": 3,
        "solved": 2,
        "sampled_tokens_per_solved": 30,
    }
    assert account(sample_of((0, 10, 100)))["sampled_tokens_per_solved"] is None


def test_costs_are_of_tokens_in_and_out_each_at_its_price():
    ours = account(sample_of((1, 10, 100), (1, 20, 200)))
    assert cost(ours, (2.0, 10.0)) == {
        "price_in": 2.0,
        "price_out": 10.0,
        "total": pytest.approx((2 * 300 + 10 * 30) / 1e6),
        "per_solved": pytest.approx((2 * 300 + 10 * 30) / 2e6),
    }
    theirs = ours | {"usage": {"prompt_tokens": 1000, "completion_tokens": 50, "requests": 3}}
    assert cost(theirs, (2.0, 10.0))["total"] == pytest.approx((2 * 1000 + 10 * 50) / 1e6)


def test_a_stored_step_is_scored_with_the_weights_under_which_it_was_trained(config: Config):
    scoring = Scoring(reward=config.rewards, steps=20)
    one = outline(wide_task(1), 0)
    for kind, step, share in (("train", 1, 1.0), ("train", 6, 0.5), ("train", 11, 0.0), ("trained", 0, 0.0)):
        one.kind, one.step = kind, step
        weights = scoring.weights(one)
        assert weights == pytest.approx({"parallel": 0.4 * share, "finish": 0.2 * share, "critical": 0.25})
        assert scoring.weights(one, single_agent=True) == {"parallel": 0.0, "finish": 0.0, "critical": 0.25}
