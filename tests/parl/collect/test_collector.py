"""The collector without Ray: calls to workers and engines, the order of results, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored import chain_task, make_episode, wide_task
from tiny import tiny_config

from envs.base import Task
from parl.collect import collector as collect
from parl.collect import stream, weight_sync
from parl.collect.collector import Collector
from parl.collect.pools import Refreshed, RolloutSide, engine_kinds
from parl.collect.rerun import StepFailed, Tries
from parl.collect.stream import EpisodeStream
from parl.collect.weight_sync import Packed, PoolWeights
from parl.config.schema import Config
from rollouts.engine.base import Update
from rollouts.episode import MACHINE, Episode, EpisodeStatus
from rollouts.scheduler import End

TASKS = [wide_task(1), chain_task(2), wide_task(3, width=8)]


class Handle:
    """An actor whose methods return ``answers`` at once, and which records calls."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.answers, self.asked = answers, []

    def __getattr__(self, name: str) -> Any:
        outer = self

        class Method:
            def remote(self, *args: Any, **settings: Any) -> Any:
                outer.asked.append((name, args, settings))
                return Call(outer.answers[name](*args, **settings))

        return Method()


class Call:
    """A reference to an existing result."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Ray:
    """The used functions of Ray: the last of several references is ready first."""

    @staticmethod
    def get(call: Any, timeout: float | None = None) -> Any:
        return [one.value for one in call] if isinstance(call, list) else call.value

    @staticmethod
    def wait(calls: list[Call], timeout: float | None = None) -> tuple[list[Call], list[Call]]:
        return calls[-1:], calls[:-1]

    @staticmethod
    def put(value: Any) -> Any:
        return value


def episode(task: Task, index: int, status: EpisodeStatus = EpisodeStatus.ANSWERED) -> Episode:
    out = make_episode(task, index, spawning=False)
    out.status = status
    return out


def run(task: Task, indices: list[int], **settings: Any) -> list[Episode]:
    return [episode(task, index) for index in indices]


def collector(config: Config, monkeypatch: pytest.MonkeyPatch, **engines: list[Handle]) -> Collector:
    monkeypatch.setattr(collect, "ray", Ray)
    monkeypatch.setattr(weight_sync, "ray", Ray)
    weights = PoolWeights.__new__(PoolWeights)
    weights.__dict__ |= {
        "_rollouts": config.rollouts,
        "_kinds": engine_kinds(config.rollouts),
        "_sync_s": 1.0,
        "_start_weights": {"w": np.zeros(1)},
        "_start_ref": None,
        "_refreshed": Refreshed(3, 2, None),
        "_packed": {"frozen": Packed(Update(version=0))},
    }
    out = Collector.__new__(Collector)
    out.__dict__ |= {
        "_side": RolloutSide.of(config),
        "_rollouts": config.rollouts,
        "_workers": [Handle(run=run) for _ in range(2)],
        "_engines": {"policy": [], "frozen": [], **engines},
        "_kinds": engine_kinds(config.rollouts),
        "_weights": weights,
        "restarts": 0,
    }
    return out


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return tiny_config(tmp_path, rollouts={"temperature": 0.9, "budget": {"critical_factor": 2.0}}, seed=5)


SETTINGS = {"seed": 3, "temperature": 0.7, "top_p": 0.8, "spawning": False}


def test_groups_come_in_the_order_asked_whatever_ends_first(config: Config, monkeypatch: pytest.MonkeyPatch):
    rollouts = collector(config, monkeypatch)
    arrived: list[str] = []
    progress: list[tuple[int, int]] = []
    found = rollouts.collect(
        TASKS,
        group_size=2,
        arrived=lambda group: arrived.append(group[0].task.key),
        progress=lambda *done: progress.append(done),
        **SETTINGS,
    )
    assert [(e.task.key, e.index) for e in found] == [(t.key, i) for t in TASKS for i in range(2)]
    assert arrived == [task.key for task in reversed(TASKS)] and progress[-1] == (3, 3)


def test_workers_are_told_settings_attempts_and_each_tasks_own_budget(config: Config, monkeypatch: pytest.MonkeyPatch):
    rollouts = collector(config, monkeypatch)
    rollouts.collect(TASKS, group_size=2, attempts=[[0], [3, 1], [2]], **SETTINGS)
    asked = {
        args[0].key: (args[1], settings, number)
        for number, worker in enumerate(rollouts._workers)
        for _, args, settings in worker.asked
    }
    budgets = [2 * 9 + 4, 2 * 5 + 4, 2 * 17 + 4]  # factor 2 of the serial plan, and 4
    for number, (task, attempts, budget) in enumerate(zip(TASKS, [[0], [3, 1], [2]], budgets, strict=True)):
        given, settings, worker = asked[task.key]
        assert (given, worker) == (attempts, number % 2)
        assert settings == {**SETTINGS, "critical_budget": budget, "pause_s": 0.0}


def test_if_all_episodes_failed_it_is_told_and_one_good_one_is_enough(config: Config, monkeypatch: pytest.MonkeyPatch):
    rollouts = collector(config, monkeypatch)
    statuses = [EpisodeStatus.FAILED, EpisodeStatus.CANCELLED]

    def failing(task: Task, indices: list[int], **settings: Any) -> list[Episode]:
        return [episode(task, index, statuses[index]) for index in indices]

    rollouts._workers = [Handle(run=failing)]
    with pytest.raises(RuntimeError, match="episodes failed"):
        rollouts.collect(TASKS[:1], group_size=2, **SETTINGS)
    statuses[1] = EpisodeStatus.MALFORMED
    assert len(rollouts.collect(TASKS[:1], group_size=2, **SETTINGS)) == 2


def fails(counts: dict[int, int], limit: str, tries: list[list[int]]) -> Callable[..., list[Episode]]:
    """Attempt i fails ``counts[i]`` times with ``limit``; calls are recorded in ``tries``."""

    def attempt(task: Task, indices: list[int], **settings: Any) -> list[Episode]:
        tries.append(list(indices))
        found = []
        for index in indices:
            counts[index] = counts.get(index, 0) - 1
            found.append(episode(task, index, EpisodeStatus.FAILED if counts[index] >= 0 else EpisodeStatus.ANSWERED))
            found[-1].limit = limit if counts[index] >= 0 else ""
        return found

    return attempt


@pytest.mark.parametrize(
    ("counts", "limit", "tries"),
    [
        ({1: 1}, MACHINE, [[0, 1, 2], [1]]),
        ({0: 2, 2: 4}, MACHINE, [[0, 1, 2], [0, 2], [0, 2], [2], [2]]),
        ({1: 1}, "", [[0, 1, 2], [1]]),  # the program's own error may pass
        ({1: 9}, "", [[0, 1, 2], [1]]),  # or not: it stays failed
        ({1: 9}, "episode_s", [[0, 1, 2]]),  # its own time was used up
    ],
)
def test_what_the_machine_made_fail_is_run_again_and_comes_in_its_place(config, counts, limit, tries, monkeypatch):
    rollouts = collector(config, monkeypatch)
    asked: list[list[int]] = []
    rollouts._workers = [Handle(run=fails(dict(counts), limit, asked))]
    found = rollouts.collect(TASKS[:1], group_size=3, **SETTINGS)
    assert asked == tries and [e.index for e in found] == [0, 1, 2]
    assert [e.index for e in found if e.void] == [i for i, n in counts.items() if n == 9]


def test_a_step_of_which_the_machine_keeps_a_part_is_not_trained(config, monkeypatch: pytest.MonkeyPatch):
    rollouts = collector(config, monkeypatch)
    asked: list[list[int]] = []
    rollouts._workers = [Handle(run=fails({1: 9}, MACHINE, asked))]
    with pytest.raises(StepFailed, match="nothing of this step is trained"):
        rollouts.collect(TASKS[:1], group_size=3, **SETTINGS)
    assert asked == [[0, 1, 2], *[[1]] * 4]


def engine(answer: Callable[[int], int]) -> Handle:
    return Handle(update=lambda update, *args: answer(update.version))


@pytest.mark.parametrize("wrong", [-1, 1])
def test_an_engine_that_serves_another_version_than_it_was_given_ends_the_run(config: Config, wrong: int, monkeypatch):
    right = engine(lambda version: version)
    rollouts = collector(config, monkeypatch, policy=[right, engine(lambda version: version + wrong)])
    with pytest.raises(RuntimeError, match=rf"policy pool serves versions \[4, {4 + wrong}\], not 4"):
        rollouts.sync({"w": np.ones(1)}, 4)
    rollouts = collector(config, monkeypatch, policy=[right, engine(lambda version: version)])
    rollouts.sync({"w": np.ones(1)}, 4)
    assert [args[0].version for _, args, _ in right.asked] == [4, 4]


def test_each_evaluated_policy_has_refreshed_sub_agents_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = tiny_config(tmp_path, rollouts={"subagent_pool": "refreshed"})
    policy, frozen = engine(lambda version: version), engine(lambda version: version)
    rollouts = collector(config, monkeypatch, policy=[policy], frozen=[frozen])
    for value in (1.0, 2.0):
        rollouts.serve({"w": np.full(1, value)})
    for served in (policy, frozen):
        assert [(args[0].version, float(args[1]["w"][0])) for _, args, _ in served.asked] == [(0, 1.0), (0, 2.0)]


class Beside:
    """The collector of a stream: groups end when the test says so."""

    restarts = 0

    def __init__(self) -> None:
        self.begun: list[tuple[int, str]] = []
        self.slack: dict[int, float] = {}
        self.ended = True

    def retrying(self, act: Callable[[], None]) -> None:
        act()

    def begin(self, number: int, task: Task, outcomes: list, **settings: Any) -> Call:
        self.begun.append((number, task.key))
        self.slack[number] = settings["slack"]
        return Call([episode(task, index) if self.ended else None for index in range(len(outcomes))])

    def snapshots(self) -> dict[int, bytes]:
        return {}


class Drawn:
    """Tasks by position."""

    def take(self, start: int, count: int) -> list[Task]:
        return [chain_task(number) for number in range(start, start + count)]


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EpisodeStream:
    monkeypatch.setattr(stream, "ray", Ray)
    rollouts = {"tasks_per_step": 2, "group_size": 3}
    config = tiny_config(tmp_path, rollouts=rollouts, trainer={"steps": 9, "staleness": 1})
    return EpisodeStream(config.rollouts, config.trainer, Beside(), Drawn(), 0)  # pyright: ignore[reportArgumentType]


def test_a_step_of_the_stream_takes_groups_in_order_and_each_has_its_own_task(running: EpisodeStream):
    found = running.take(lambda *done: None)
    assert running._collector.begun[:4] == [(number, f"chain-{number}") for number in range(4)]
    assert len(found) == 6 and [e.task.key for e in found] == sorted(e.task.key for e in found)
    assert sorted(running.scheduler.groups) == sorted({0, 1, 2, 3} - {int(e.task.key[-1]) for e in found})
    assert running.metrics()["rollouts/accepted"] % 3 == 0
    running.advance()
    assert running.scheduler.version == 1
    assert [number for number, _ in running._collector.begun[4:]] == [4, 5]


class Servers:
    """A roster whose ``looks`` find one set of servers after the other."""

    def __init__(self, *looks: tuple[str, ...]) -> None:
        self.used, self.looks = looks[0], list(looks[1:])

    def look(self) -> tuple[str, ...]:
        return self.looks.pop(0)

    def take(self, found: tuple[str, ...]) -> None:
        self.used = found

    def settle(self) -> None:
        pass


def test_a_server_that_changes_while_episodes_run_waits_for_a_halt(config: Config, monkeypatch: pytest.MonkeyPatch):
    """Only the change that the caller was told of, and halted for, is taken."""
    rollouts = collector(config, monkeypatch)
    weights = {"w": np.ones(1)}
    rollouts._roster = Servers(("a", "b"), ("a", "b"), ("a",), ("a", "b"))  # pyright: ignore
    old = {url: Handle(update=lambda update, *_: update.version) for url in ("a", "b")}
    rollouts._engines["policy"] = list(old.values())
    served: list[Any] = []
    monkeypatch.setattr(rollouts, "_serve_workers", lambda: served.append(list(rollouts._engines["policy"])))
    monkeypatch.setattr(collect, "stop", lambda actors: None)
    assert not rollouts.servers_change()
    rollouts.sync(weights, 1, in_flight=True)
    assert served == [] and rollouts.servers == 2
    assert rollouts.servers_change()  # "b" is lost
    rollouts.sync(weights, 2, in_flight=True)
    assert served == [[old["a"]]] and rollouts.servers == 1  # it is back, which the next look sees


def test_a_group_that_ran_again_goes_on_at_once_after_a_later_halt():
    tries = Tries()
    assert tries.again([episode(TASKS[0], 0, EpisodeStatus.FAILED)]) and tries.pause_s == 1.0
    assert tries.again([]) == [] and tries.pause_s == 0.0


ANSWERED, FAILED = EpisodeStatus.ANSWERED, EpisodeStatus.FAILED


@pytest.mark.parametrize(
    ("statuses", "ends"),
    [
        ((ANSWERED, ANSWERED, FAILED), [End.ACCEPTED, End.ACCEPTED, End.FAILED]),
        ((ANSWERED, FAILED, FAILED), [End.FILTERED, End.FAILED, End.FAILED]),  # a baseline of itself teaches nothing
        ((FAILED, FAILED, FAILED), [End.FAILED] * 3),
        ((EpisodeStatus.MALFORMED, EpisodeStatus.OVER_BUDGET), [End.ACCEPTED] * 2),
    ],
)
def test_what_becomes_of_a_groups_episodes(running: EpisodeStream, statuses, ends):
    assert running._ends([episode(TASKS[0], i, status) for i, status in enumerate(statuses)]) == ends


def test_as_many_fruitless_groups_in_a_row_as_a_step_has_end_the_run(running: EpisodeStream):
    bad = [episode(TASKS[0], 0, FAILED), episode(TASKS[0], 1)]
    good = [episode(TASKS[0], 0), episode(TASKS[0], 1)]
    for group in (bad, good, bad):
        running._ends(group)
    with pytest.raises(RuntimeError, match="2 groups in a row failed"):
        running._ends(bad)


def test_a_step_is_collected_with_the_slack_it_is_given(config: Config, monkeypatch: pytest.MonkeyPatch):
    rollouts = collector(config, monkeypatch)
    for slack in (1.0, 1.5):
        rollouts.collect(TASKS[:1], group_size=2, slack=slack, **SETTINGS)
    asked = [settings["critical_budget"] for _, _, settings in rollouts._workers[0].asked]
    assert asked == [22, 33]  # 2 * 9 + 4, and half of it more


def sloped(folder: Path, steps: int) -> EpisodeStream:
    """A stream whose budgets have a slack of 3 at first, which falls over all steps."""
    budget = {"curriculum": {"slack": 3.0, "until": 1.0}}
    rollouts = {"tasks_per_step": 2, "group_size": 3, "budget": budget}
    config = tiny_config(folder, rollouts=rollouts, trainer={"steps": steps, "staleness": 1})
    return EpisodeStream(config.rollouts, config.trainer, Beside(), Drawn(), 0)  # pyright: ignore[reportArgumentType]


def test_a_group_keeps_the_slack_of_the_version_at_which_it_began_also_when_a_longer_run_continues_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(stream, "ray", Ray)
    first = sloped(tmp_path, 9)
    first.take(lambda *done: None)
    first._collector.ended = False
    first.advance()
    assert first._collector.slack == {0: 3.0, 1: 3.0, 2: 3.0, 3: 3.0, 4: 2.75, 5: 2.75}
    first.save(tmp_path, 1)
    again = sloped(tmp_path, 17)
    again.load(tmp_path, 1)
    assert again.scheduler.steps == 17 and {4, 5} <= set(again._begun)
    again.take(lambda *done: None)
    assert {number: again._collector.slack[number] for number in (4, 5)} == {4: 2.75, 5: 2.75}
    again.advance()
    assert [slack for number, slack in again._collector.slack.items() if number > 5] == [2.75, 2.75]  # 2 of 16 steps
