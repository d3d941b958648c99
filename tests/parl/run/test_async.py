"""Asynchronous training: bounded ages, nothing lost or trained twice, kills and dead actors survived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from tiny import joining

from parl.collect.stream import EpisodeStream
from parl.config.load import load_config, to_yaml
from parl.config.schema import Config
from parl.run.checkpoints import Checkpoints, State
from parl.run.loop import Training
from parl.track.progress import Progress
from parl.track.tracker import read_rows
from rollouts.episode import Episode, EpisodeStatus
from rollouts.store.store import EpisodeStore
from rollouts.swarm.partial import Outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def changed(config: Config, name: str, **trainer: Any) -> Config:
    trainer = {"staleness": 2, **trainer}
    return config.model_copy(update={"name": name, "trainer": config.trainer.model_copy(update=trainer)})


def check(folder: Path, config: Config) -> list[dict[str, Any]]:
    """Properties of any run; returns its rows."""
    steps, bound = config.trainer.steps, config.trainer.staleness
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    store, seen = EpisodeStore(folder / "episodes"), set()
    for step in range(1, steps + 1):
        episodes, version = store.read(step) or pytest.fail(f"no shard of step {step}")
        assert version == step - 1 and len(episodes) == 8
        for episode in episodes:
            key = (episode.task.key, episode.index)
            assert key not in seen, "trained twice"
            seen.add(key)
            ages = [version - v for t in episode.traces if t.trainable for v in t.versions if v >= 0]
            assert all(0 <= age <= bound for age in ages)
    for row in rows:
        assert 0 <= row["policy/staleness"] <= row["policy/staleness_max"] <= bound
        ended = sum(row[f"rollouts/{name}"] for name in ("accepted", "filtered", "failed", "cancelled", "running"))
        assert row["rollouts/submitted"] == ended
        assert all(0 <= row[f"speed/{name}_busy"] <= 1 for name in ("learner", "policy", "frozen"))
    return rows


@pytest.mark.parametrize("overlap", [True, False])
def test_a_run_with_staleness_trains_every_task_once_and_within_the_bound(
    one_ray: None, tiny_run: Config, cold_start: Path, tmp_path: Path, overlap: bool
):
    config = changed(tiny_run, "beside", overlap=overlap, steps=5)
    Training(config, tmp_path, cold_start).run(Progress(5, "test"))
    rows = check(tmp_path, config)
    assert any(row["policy/staleness_max"] > 0 for row in rows)
    spans = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    assert {span["what"] for span in spans} == {"collect", "learn", "sync", "save"}
    learning = [span["policy"] for span in spans if span["what"] == "learn"]
    beside = [
        span["policy"] for span in spans if span["what"] != "collect"
    ]  # these episodes are too short for learn alone
    assert any(beside) if overlap else not any(learning)  # halted means halted


def test_a_killed_run_goes_on_with_its_unfinished_episodes(
    one_ray: None, cold_start: Path, tiny_run: Config, tmp_path: Path
):
    config = changed(tiny_run, "killed-beside", steps=5)
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(config))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "RAY"))}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[3]), **joining()}
    script = Path(__file__).parents[1] / "killed_run.py"
    for number, (moment, call) in enumerate([("stored", 4), ("checkpoint", 2)]):
        resume = ["--resume"] * bool(number)
        command = [sys.executable, str(script), moment, str(call), "train", str(path), *resume]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert run.returncode == -signal.SIGKILL, f"{moment}: {run.stdout[-2000:]}{run.stderr[-4000:]}"
    state, folder = Checkpoints(config.run_dir / "checkpoints", 2).latest() or pytest.fail("no checkpoint")
    unfinished = json.loads((folder / "unfinished.json").read_text())
    assert state.step in (1, 2) and unfinished["groups"]  # the second save may have been on its way
    Training(load_config(path), config.run_dir, cold_start).run(Progress(5, "resumed"))
    check(config.run_dir, config)


PROGRESS = SimpleNamespace(phase=lambda *args: None)


@pytest.fixture(scope="module")
def actors(one_ray: None, tiny_run: Config, cold_start: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run before its first step, all actors up."""
    training = Training(changed(tiny_run, "streams"), tmp_path_factory.mktemp("streams"), cold_start)
    with training._actors():
        training._restore()
        yield training


@pytest.fixture
def training(actors: Training) -> Training:
    """The same with nothing begun."""
    actors._collector.suspend()
    actors.state = State()
    actors._collector.sync(actors.weights, 0, in_flight=True)
    actors._stream = EpisodeStream(actors.config.rollouts, actors.config.trainer, actors._collector, actors.tasks, 0)
    return actors


def seen(outcome: Outcome) -> Any:
    """The content of an outcome, comparable."""
    if outcome is None:
        return None
    episode, rest = (outcome, ()) if isinstance(outcome, Episode) else (outcome.episode, astuple(outcome)[1:])
    parts = ("agent_id", "status", "tokens", "mask", "logprobs", "versions", "turns", "message")
    traces = [[getattr(trace, name) for name in parts] for trace in episode.traces]
    routes = [None if trace.routes is None else trace.routes.tolist() for trace in episode.traces]
    return (episode.task.key, episode.index, episode.status, episode.wall_s, traces, routes, rest)


def stream_of(training: Training) -> EpisodeStream:
    return training._stream or pytest.fail("no stream")


def test_what_was_saved_is_taken_up_as_it_was(training: Training, tmp_path: Path):
    stream = stream_of(training)
    training._collect(1, training.config.rewards.weights(0, training.config.trainer.steps), PROGRESS)
    training._sync(training.config.rollouts.tasks_per_step)
    stream.save(tmp_path, 1)
    stream.halt()  # so that nothing changes while it is looked at; where it stood is in the outcomes
    stream.save(tmp_path, 1)
    again = EpisodeStream(training.config.rollouts, training.config.trainer, training._collector, training.tasks, 0)
    again.load(tmp_path, 1)
    assert again.scheduler == stream.scheduler
    kept, wanted = ({n: list(map(seen, b.outcomes)) for n, b in s._begun.items()} for s in (again, stream))
    assert kept == wanted
    assert len(stream._begun) == 6  # room for three steps of two


@pytest.mark.parametrize("victim", ["engine", "worker"])
def test_a_dead_actor_costs_time_and_nothing_else(training: Training, victim: str):
    collector, stream = training._collector, stream_of(training)
    restarts = collector.restarts
    stream._begin()
    ray.kill(collector._workers[0] if victim == "worker" else collector._engines["policy"][0])
    episodes = stream.take(lambda done, total: None)
    assert len(episodes) == 8 and EpisodeStatus.FAILED not in {episode.status for episode in episodes}
    assert collector.restarts == restarts + 1
    counts = stream.scheduler.counts
    assert counts.failed == 0 and counts.submitted == counts.accepted + stream.scheduler.running == 24


def test_a_policy_that_only_fails_stops_a_stream_too(training: Training):
    broken = {name: array.copy() for name, array in training.weights.items()}
    broken["norm.weight"][:] = 3e38  # finite, but no logit is
    training._collector.sync(broken, 0)
    with pytest.raises(RuntimeError, match="all episodes of 2 groups in a row failed, the last of: NotFinite"):
        stream_of(training).take(lambda done, total: None)


def test_a_token_older_than_the_bound_never_reaches_the_learner(training: Training):
    episodes = stream_of(training).take(lambda done, total: None)
    training.state.policy_version = 3
    with pytest.raises(RuntimeError, match="tokens of version 0 to 0 reached the learner at version 3"):
        training._staleness(episodes)
