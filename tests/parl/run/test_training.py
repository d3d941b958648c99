"""A whole run: bit-equal after kills at the worst moments, recovers from dead engines, exits on all else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.exceptions import RayActorError
from tiny import joining

from model.decoder import NotFinite
from model.kimi.family import Kimi
from model.policy_files import load_policy
from parl.config.schema import Config
from parl.errors import UserError
from parl.run.checkpoints import Checkpoints
from parl.run.job import run_training
from parl.run.loop import Training
from parl.track.progress import Progress
from parl.track.tracker import read_rows
from parl.track.wandb_reader import read_history, wandb_files
from rollouts.episode import Episode
from rollouts.store.store import EpisodeStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
KILLS = [  # (moment, in which call of this process): each resumes what the one before left
    ("collecting", 2),  # of step 2
    ("stored", 1),  # of step 2
    ("checkpoint", 1),  # of step 2, whose episodes come from the store
]


def timeless(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` without values of clocks and caches."""
    rows = [row for row in read_rows(run_dir / "metrics.jsonl") if row["kind"] == "train"]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "speed/", "latency/"))} for row in rows]


def said(episode: Episode) -> list[Any]:
    """Everything of an episode except its times."""
    traces = [
        (t.agent_id, t.tokens, t.logprobs, t.versions, t.status, None if t.routes is None else t.routes.tolist())
        for t in episode.traces
    ]
    return [episode.task.key, episode.index, episode.status, episode.answer, traces]


@pytest.fixture(scope="module")
def resumed(one_ray: None, cold_start: Path, tiny_yaml: Path, tiny_run: Config) -> Path:
    """The tiny run, killed three times and resumed three times; its folder."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "RAY"))}
    alone["PYTHONPATH"] = str(Path(__file__).parents[3])
    joined = alone | joining()
    for number, (moment, call) in enumerate(KILLS):
        script = Path(__file__).parents[1] / "killed_run.py"
        resume = ["--resume"] * bool(number)
        command = [sys.executable, str(script), moment, str(call), "train", str(tiny_yaml), *resume]
        environment = joined if number else alone  # with a Ray of its own, and in a cluster that outlives it
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert run.returncode == -signal.SIGKILL, f"{moment}: {run.stdout[-2000:]}{run.stderr[-4000:]}"
    with Progress(4, "resumed") as progress:
        Training(tiny_run, tiny_run.run_dir, cold_start).run(progress)
    return tiny_run.run_dir


def test_a_run_that_was_killed_three_times_ends_in_the_same_bits(resumed: Path, finished: Path, cold_start: Path):
    weights = [(folder / "policy" / "model.safetensors").read_bytes() for folder in (resumed, finished)]
    assert weights[0] == weights[1]
    cold, trained = (load_policy(folder, Kimi())[0] for folder in (cold_start, finished / "policy"))
    assert any((cold[name] != trained[name]).any() for name in cold)  # it did learn something


def test_its_metrics_are_the_same_and_every_step_is_there_once(resumed: Path, finished: Path):
    assert timeless(resumed) == timeless(finished)
    assert [row["step"] for row in timeless(resumed)] == [1, 2, 3, 4]


def test_no_episode_is_lost_or_trained_twice(resumed: Path, finished: Path):
    stores = EpisodeStore(resumed / "episodes"), EpisodeStore(finished / "episodes")
    assert stores[0].steps() == stores[1].steps() == [1, 2, 3, 4]
    for step in stores[0].steps():
        (first, version), (second, _) = (store.read(step) for store in stores)
        assert version == step - 1 and len(first) == 8
        assert list(map(said, first)) == list(map(said, second))
        assert [episode.rewards for episode in first] == [episode.rewards for episode in second]
    state, _ = Checkpoints(resumed / "checkpoints", 2).latest() or pytest.fail("no checkpoint")
    assert (state.step, state.policy_version, state.episodes, state.tasks_drawn) == (4, 4, 32, 8)


def test_wandb_continues_one_run_that_holds_every_step(resumed: Path):
    run_ids = {path.stem.removeprefix("run-") for path in wandb_files(resumed)}
    assert len(run_ids) == 1
    rows = [row for row in read_history(resumed) if "train/step" in row]
    assert {row["train/step"] for row in rows} == {1, 2, 3, 4}
    parts = [f"train/reward/{part}" for part in ("total", "perf", "parallel", "finish", "critical")]
    for row in rows:
        assert all(np.isfinite(row[name]) for name in [*parts, "train/steps/critical", "train/lambda/parallel"])


def test_killed_runs_leave_no_process_behind(resumed: Path, tiny_yaml: Path):
    left = [p for p in psutil.process_iter(["cmdline"]) if str(tiny_yaml) in " ".join(p.info["cmdline"] or [])]
    assert not left


@pytest.fixture(scope="module")
def training(one_ray: None, cold_start: Path, tiny_run: Config, tmp_path_factory: pytest.TempPathFactory):
    """A run before its first step, all actors up."""
    training = Training(tiny_run, tmp_path_factory.mktemp("broken"), cold_start)
    with training._actors():
        training._restore()
        yield training


PROGRESS = SimpleNamespace(phase=lambda *args: None)


@pytest.mark.parametrize("victim", ["engine", "worker"])
def test_a_rollout_actor_killed_while_collecting_is_replaced_and_the_same_episodes_come(
    training: Training, finished: Path, tiny_run: Config, monkeypatch: pytest.MonkeyPatch, victim: str
):
    collector = training._collector
    submit, restarts, submitted = collector._submit, collector.restarts, []

    def submit_and_kill(*args: Any) -> Any:
        submitted.append(submit(*args))
        if len(submitted) == 2:  # both groups are on their way
            ray.kill(collector._workers[0] if victim == "worker" else collector._engines["policy"][0])
        return submitted[-1]

    monkeypatch.setattr(collector, "_submit", submit_and_kill)
    settings = {"group_size": 4, "seed": tiny_run.seed, "temperature": tiny_run.rollouts.temperature}
    episodes = collector.collect(training.tasks.take(0, 2), **settings)
    wanted, _ = EpisodeStore(finished / "episodes").read(1) or pytest.fail("no shard of step 1")
    assert list(map(said, episodes)) == list(map(said, wanted))
    assert collector.restarts == restarts + 1


def test_broken_weights_never_reach_an_engine(training: Training):
    broken = {name: array.copy() for name, array in training.weights.items()}
    broken["norm.weight"][0] = np.nan
    with pytest.raises(NotFinite, match=r"norm\.weight"):
        training._collector.sync(broken, 1)
    training._collector.sync(training.weights, 0)


def test_a_policy_that_only_fails_stops_the_run(training: Training, tiny_run: Config):
    broken = {name: array.copy() for name, array in training.weights.items()}
    broken["norm.weight"][:] = 3e38  # finite, but no logit is
    training._collector.sync(broken, 1)
    with pytest.raises(RuntimeError, match="all 4 episodes failed, the first of: NotFinite"):
        training._collector.collect(training.tasks.take(0, 1), group_size=4, seed=1, temperature=1.0)
    training._collector.sync(training.weights, 0)


def test_a_full_disk_is_named_before_anything_is_written(training: Training, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("parl.run.checkpoints.shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(
        UserError, match=r"checkpoints: a checkpoint needs \d+ bytes and \d+ to spare, but 1000 are free"
    ):
        training._saver.save(training.state)
    assert not list((training.folder / "checkpoints").iterdir())


def test_a_dead_learner_ends_the_run_with_its_own_error(training: Training):
    ray.kill(training._learner._ranks[0])
    with pytest.raises(RayActorError):
        training._step(PROGRESS)


def test_resuming_needs_a_run_of_the_same_configuration(finished: Path, tiny_run: Config):
    with pytest.raises(UserError, match="nothing to resume"):
        run_training(tiny_run.model_copy(update={"name": "never"}), resume=True)
    learning = tiny_run.optimizer.model_copy(update={"lr": 0.125})
    changed = tiny_run.model_copy(update={"name": "undisturbed", "optimizer": learning})
    with pytest.raises(UserError, match=r"is another run: optimizer\.lr was .* and is 0\.125\. Resume it with"):
        run_training(changed, resume=True)


def test_a_finished_run_is_not_trained_again(finished: Path, tiny_run: Config, cold_start: Path):
    config = tiny_run.model_copy(update={"name": "undisturbed", "baseline": True})
    with Progress(1, "again") as progress:
        folder = Training(config, finished, cold_start).run(progress)  # would need Ray's actors to do anything
    assert folder == finished / "policy"
