"""Training beside collecting: ages within the bound, nothing lost or trained twice, kills and dead actors survived."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from parl.config import Config
from parl.loading import load_config, to_yaml
from parl.progress import Progress
from parl.state import Checkpoints
from parl.tracking import read_rows
from parl.trainer import Training
from rollouts.episode import EpisodeStatus
from rollouts.store import EpisodeStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def changed(config: Config, name: str, **trainer: Any) -> Config:
    trainer = {"staleness": 2, **trainer}
    return config.model_copy(update={"name": name, "trainer": config.trainer.model_copy(update=trainer)})


def check(folder: Path, config: Config) -> list[dict[str, Any]]:
    """What holds for any run; its rows."""
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
    assert any(learning) if overlap else not any(learning)  # halted means halted


def test_a_killed_run_goes_on_with_its_unfinished_episodes(
    one_ray: None, cold_start: Path, tiny_run: Config, tmp_path: Path
):
    config = changed(tiny_run, "killed-beside", steps=5)
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(config))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "RAY"))}
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
    }
    script = Path(__file__).parent / "killed_run.py"
    for number, (moment, call) in enumerate([("stored", 2), ("checkpoint", 2)]):
        resume = ["--resume"] * bool(number)
        command = [sys.executable, str(script), moment, str(call), "train", str(path), *resume]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert run.returncode == -signal.SIGKILL, f"{moment}: {run.stdout[-2000:]}{run.stderr[-4000:]}"
    state, folder = Checkpoints(config.run_dir / "checkpoints", 2).latest() or pytest.fail("no checkpoint")
    unfinished = json.loads((folder / "unfinished.json").read_text())
    assert state.step == 2 and unfinished["groups"]
    Training(load_config(path), config.run_dir, cold_start).run(Progress(5, "resumed"))
    check(config.run_dir, config)


@pytest.mark.parametrize("overlap", [True, False])
def test_what_was_saved_is_taken_up_as_it_was(
    one_ray: None, tiny_run: Config, cold_start: Path, tmp_path: Path, overlap: bool
):
    training = Training(changed(tiny_run, "saved", overlap=overlap), tmp_path, cold_start)
    with training._actors():
        training._restore()
        stream = training._stream or pytest.fail("no stream")
        progress = SimpleNamespace(phase=lambda *args: None)
        training._collect(1, training.reward_weights(0), progress)
        training._sync()
        (tmp_path / "saved").mkdir()
        stream.halt()
        stream.save(tmp_path / "saved", 1)
        before = stream.scheduler.to_json()
        outcomes = {number: begun.outcomes for number, begun in stream._begun.items()}
        again = type(stream)(training.config, training._collector, training.tasks, 1)
        again.load(tmp_path / "saved", 1)
        assert again.scheduler.to_json() == before
        assert {n: repr(b.outcomes) for n, b in again._begun.items()} == {n: repr(o) for n, o in outcomes.items()}


@pytest.mark.parametrize("victim", ["engine", "worker"])
def test_a_dead_actor_costs_time_and_nothing_else(
    one_ray: None, tiny_run: Config, cold_start: Path, tmp_path: Path, victim: str
):
    training = Training(changed(tiny_run, "broken"), tmp_path, cold_start)
    progress = SimpleNamespace(phase=lambda *args: None)
    with training._actors():
        training._restore()
        collector = training._collector
        for step in range(2):
            training._stream._begin()
            if step:
                ray.kill(collector._workers[0] if victim == "worker" else collector._engines["policy"][0])
            training._step(progress)
        assert collector.restarts == 1
        counts = training._stream.scheduler.counts
        assert counts.failed == 0 and counts.submitted == counts.accepted + training._stream.scheduler.running
    (first, _), (second, _) = (EpisodeStore(tmp_path / "episodes").read(step) for step in (1, 2))
    assert EpisodeStatus.FAILED not in {episode.status for episode in [*first, *second]}


def test_a_policy_that_only_fails_stops_a_stream_too(
    one_ray: None, tiny_run: Config, cold_start: Path, tmp_path: Path
):
    training = Training(changed(tiny_run, "hopeless"), tmp_path, cold_start)
    with training._actors():
        training._restore()
        broken = {name: array.copy() for name, array in training.weights.items()}
        broken["norm.weight"][:] = 3e38  # finite, but no logit is
        training._collector.sync(broken, 0)
        with pytest.raises(RuntimeError, match="all episodes of 2 groups in a row failed, the last of: NotFinite"):
            training._stream.take(lambda done, total: None)
