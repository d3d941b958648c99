"""A whole job: checks, cold start, training, the single-agent baseline, evaluation, summary and report."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from parl.cold_start.shipped import Recipe, cold_start_folder
from parl.cold_start.starting_policy import shown_start, starting_policy
from parl.collect.free_running import free_running
from parl.collect.tasks import Tasks, check_tasks
from parl.config.schema import Config
from parl.machine.cluster import local_ray, reach_cluster, use
from parl.machine.nodes.check import data_paths
from parl.machine.peak_memory import PeakMemory
from parl.run.checkpoints import newest_state
from parl.run.claim import claimed
from parl.run.finish import evaluate_policies, track_evaluation
from parl.run.loop import Training
from parl.run.mirror import Mirror, fetch, mirrored
from parl.serve.servers import check_servers
from parl.track.progress import Progress
from parl.track.sinks import check_sinks


def run_training(config: Config, *, resume: bool = False, from_scratch: bool = False, evaluated: bool = True) -> Path:
    """Run ``parl train``; returns the run's folder. Raises UserError for mistakes with a fix.

    ``evaluated=False``: only train, without evaluation, summary and report.
    """
    began = time.monotonic()
    use(config.cluster, data_paths(config.envs.config))
    tasks = check_tasks(config)
    check_sinks(config.tracking)
    reach_cluster()
    check_servers(config.rollouts.http)
    if resume:
        fetch(config.mirror, config.run_dir, cold_start_folder(Recipe.of(config)))
    with claimed(config, resume=resume) as run_dir, mirrored(config.mirror, run_dir, resume=resume) as mirror:
        began -= _train_time(run_dir) + _train_time(run_dir / "single_agent")
        _run(config, tasks, run_dir, began, from_scratch, evaluated, mirror)
    return run_dir


def _run(
    config: Config,
    tasks: Tasks,
    run_dir: Path,
    began: float,
    from_scratch: bool,
    evaluated: bool,
    mirror: Mirror | None,
) -> None:
    with PeakMemory() as memory, local_ray():
        check = free_running(config)
        cold = shown_start(config.name, partial(starting_policy, config, from_scratch=from_scratch, check=check))
        if mirror:
            mirror.add_cold_start(cold, copied=config.model.init is None or config.sft.data is not None)
        policies = {
            "cold_start": (cold, config.rollouts.swarm),
            "trained": (_train(config, run_dir, cold, mirror), config.rollouts.swarm),
        }
        if config.baseline:
            policies["single_agent"] = (_train(single_agent(config), run_dir / "single_agent", cold, mirror), False)
        if not evaluated:
            return
        with Progress(len(policies), "held-out evaluation") as progress:
            summary = evaluate_policies(
                config, run_dir, policies, tasks, cold=cold, began=began, memory=memory, progress=progress
            )
    tables = {label: summary[label] for label in policies}
    track_evaluation(run_dir, tables, config.tracking, config.model_dump(mode="json"))


def _train_time(folder: Path) -> float:
    """Seconds of training that earlier invocations of a resumed run spent in ``folder``."""
    return newest_state(folder).elapsed_s


def _train(config: Config, folder: Path, cold: Path, mirror: Mirror | None) -> Path:
    dtype = config.model.shape.weights_dtype
    with Progress(config.trainer.steps, config.name, dtype=dtype) as progress:
        return Training(config, folder, cold, mirror).run(progress)


def single_agent(config: Config) -> Config:
    """The same run without spawning tools and without rewards for spawning."""
    rollouts = config.rollouts.model_copy(update={"swarm": False})
    name = f"{config.name}-single-agent"
    return config.model_copy(update={"rollouts": rollouts, "rewards": config.rewards.alone(), "name": name})
