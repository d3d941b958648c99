"""The training loop, top to bottom: collect → score → advantage → learn → sync → save → track.

``run_training`` is the whole job: cold start, training, the single-agent baseline, evaluation, summary and report.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from envs.world.environment import WorldEnvironment
from model.checkpoint import load_policy, save_policy
from model.decoder import Weights
from parl.advantage import Row, step_rows
from parl.cluster import local_ray
from parl.collect import Collector
from parl.config import Config
from parl.errors import UserError
from parl.evaluate import evaluate_policies, track_evaluation
from parl.learner_group import LearnerGroup
from parl.loading import to_yaml
from parl.memory import PeakMemory
from parl.progress import Progress
from parl.ptx import PtxTexts
from parl.scoring import reward_schedule
from parl.start import starting_policy
from parl.state import Checkpoints, State
from parl.tasks import TrainTasks, check_tasks
from parl.tracking import Tracker
from rewards.aggregate import aggregate
from rewards.parl import Weights as RewardWeights
from rewards.score import score_episode
from rollouts.episode import Episode
from rollouts.store import EpisodeStore


def run_training(config: Config, *, resume: bool = False, from_scratch: bool = False) -> Path:
    """Everything that ``parl train`` does; returns the run's folder. Raises UserError for mistakes with a fix."""
    began = time.monotonic()
    run_dir = config.run_dir
    check_tasks(config)
    _claim(run_dir, config, resume)
    began -= _train_time(run_dir) + _train_time(run_dir / "single_agent")
    with PeakMemory() as memory, local_ray():
        cold = _cold_start(config, from_scratch)
        policies = {
            "cold_start": (cold, config.rollouts.swarm),
            "trained": (_train(config, run_dir, cold), config.rollouts.swarm),
        }
        if config.baseline:
            policies["single_agent"] = (_train(single_agent(config), run_dir / "single_agent", cold), False)
        with Progress(len(policies), "held-out evaluation") as progress:
            summary = evaluate_policies(
                config, run_dir, policies, cold=cold, began=began, memory=memory, progress=progress
            )
    track_evaluation(config, run_dir, {label: summary[label] for label in policies})
    return run_dir


def _train_time(folder: Path) -> float:
    """Seconds of training that earlier invocations of a resumed run spent in ``folder``."""
    found = Checkpoints(folder / "checkpoints", 1).latest() if folder.exists() else None
    return found[0].elapsed_s if found else 0.0


def _cold_start(config: Config, from_scratch: bool) -> Path:
    shown = -1

    with Progress(1, f"{config.name}: cold start") as progress:

        def report(done: int, total: int, metrics: dict[str, float]) -> None:
            nonlocal shown
            if done * 20 // total != shown:  # a line every 5 %
                shown = done * 20 // total
                progress.phase(f"loss {metrics['loss']:.2f}, accuracy {metrics['accuracy']:.3f}", done, total)

        return starting_policy(config, from_scratch=from_scratch, report=report)


def _train(config: Config, folder: Path, cold: Path) -> Path:
    with Progress(config.trainer.steps, config.name) as progress:
        return Training(config, folder, cold).run(progress)


def single_agent(config: Config) -> Config:
    """The same run without spawning tools and without the terms that pay for spawning."""
    rollouts = config.rollouts.model_copy(update={"swarm": False})
    rewards = config.rewards.model_copy(update={"lambda_parallel": 0.0, "lambda_finish": 0.0})
    return config.model_copy(update={"rollouts": rollouts, "rewards": rewards, "name": f"{config.name}-single-agent"})


class Training:
    """One policy's training in one folder."""

    def __init__(self, config: Config, folder: Path, cold: Path) -> None:
        self.config, self.folder, self.cold = config, folder, cold
        self.checkpoints = Checkpoints(folder / "checkpoints", config.trainer.keep_checkpoints)
        self.store = EpisodeStore(folder / "episodes")
        self.tasks = TrainTasks(config)
        self.reward_weights = reward_schedule(config.rewards, config.trainer.steps)
        self.state = State()
        self.weights: Weights = {}
        self._learner: LearnerGroup
        self._collector: Collector
        self._texts: PtxTexts

    def run(self, progress: Progress) -> Path:
        """Train to the last step, from the newest checkpoint if there is one; returns the policy's folder."""
        final = self.folder / "policy"
        if (final / "model.safetensors").exists():
            return final
        progress.phase("starting engines and learner")
        with self._actors():
            self._restore()
            if self.state.wandb_id is None:  # kept before anything is logged: a resumed run continues the same one
                self.state.wandb_id = secrets.token_hex(4)
                self._save()
            tracker = Tracker(self.folder, self.config, self.state.wandb_id, self.state.step)
            try:
                self.store.discard_after(self.state.step + 1)
                while self.state.step < self.config.trainer.steps:
                    metrics = self._step(progress)
                    tracker.log(self.state.step, metrics)  # before the checkpoint: a kill in between logs it again
                    if self._due():
                        self._save()
                    progress.update(self.state.step, metrics)
                _, model, tokenizer, _ = load_policy(self.cold)
                meta = {"step": self.state.step, "policy_version": self.state.policy_version}
                save_policy(final, model, self.weights, tokenizer, meta)
            finally:
                tracker.finish()
        return final

    # ---------------------------------------------------------------- one step

    def _step(self, progress: Progress) -> dict[str, float]:
        began = time.monotonic()
        step = self.state.step + 1
        lambdas = self.reward_weights(self.state.step)
        episodes = self._collect(step, lambdas, progress)
        collected = time.monotonic()
        progress.phase("learning")
        objective = self.config.objective
        rows = step_rows(episodes, routed=self.config.model.num_moe_layers > 0, normalise_std=objective.normalises)
        learned = self._learn(rows)
        trained = time.monotonic()
        self.weights = self._learner.weights()
        sync_s = self._collector.sync(self.weights, self.state.policy_version + 1)
        sampled_by = [v for episode in episodes for v in episode.orchestrator.versions if v >= 0]
        staleness = self.state.policy_version - sum(sampled_by) / max(len(sampled_by), 1)
        self.state.step, self.state.policy_version = step, self.state.policy_version + 1
        self.state.tasks_drawn += self.config.rollouts.tasks_per_step
        self.state.episodes += len(episodes)
        self.state.elapsed_s += time.monotonic() - began
        tokens = sum(sum(trace.mask) for episode in episodes for trace in episode.traces)
        return {
            **aggregate(episodes),
            "lambda/parallel": lambdas.parallel,
            "lambda/finish": lambdas.finish,
            "lambda/critical": lambdas.critical,
            **{f"policy/{name}": value for name, value in learned.items()},
            "policy/version": self.state.policy_version,
            "policy/staleness": staleness,
            "rollouts/tokens": tokens,
            "rollouts/restarts": self._collector.restarts,
            **self._engine_metrics(),
            "speed/tokens_per_s": tokens / (collected - began),
            "time/collect_s": collected - began,
            "time/learn_s": trained - collected,
            "time/sync_s": sync_s,
            "time/step_s": time.monotonic() - began,
        }

    def _engine_metrics(self) -> dict[str, float]:
        """Share of prompt tokens that shared pages spared each pool since it started."""
        counters = self._collector.statistics()
        return {
            f"speed/{pool}_prefix_hit_rate": counters[f"{pool}/prefix_hits"]
            / max(counters[f"{pool}/prefix_asked"], 1.0)
            for pool in ("policy", "frozen")
        }

    def _collect(self, step: int, lambdas: RewardWeights, progress: Progress) -> list[Episode]:
        """This step's scored episodes: from the store if a killed run had collected them, else fresh, then stored."""
        stored = self.store.read(step)
        if stored is not None and stored[1] == self.state.policy_version:
            return stored[0]
        tasks = self.tasks.take(self.state.tasks_drawn, self.config.rollouts.tasks_per_step)
        episodes = self._collector.collect(
            tasks,
            group_size=self.config.rollouts.group_size,
            seed=self.config.seed,
            temperature=self.config.rollouts.temperature,
            progress=lambda done, total: progress.phase("rolling out", done, total),
        )
        for episode in episodes:
            score_episode(episode, lambdas, self.config.rewards.parallel_cap)
        self.store.write(step, episodes, policy_version=self.state.policy_version)
        return episodes

    def _learn(self, rows: list[Row]) -> dict[str, float]:
        """``epochs`` passes in ``minibatches`` optimiser steps each, groups kept whole; metrics averaged."""
        trainer, keys = self.config.trainer, list(dict.fromkeys(row.key[0] for row in rows))
        done = self.state.step / trainer.steps
        lr_scale = 1.0 - done * (1.0 - self.config.optimizer.final_lr)
        totals: dict[str, float] = {}
        gap: float | None = None  # engine against learner, seen only before the first update
        objective, temperature = self.config.objective, self.config.rollouts.temperature
        rows = self._learner.score(rows, objective, temperature=temperature)
        texts = self._texts.batches(self.state.step, trainer.epochs * trainer.minibatches)
        for _ in range(trainer.epochs):
            for part in range(trainer.minibatches):
                chosen = set(keys[part :: trainer.minibatches])
                batch = [row for row in rows if row.key[0] in chosen]
                if not batch:
                    continue
                metrics = self._learner.policy_step(
                    batch, objective, temperature=temperature, lr_scale=lr_scale, texts=next(texts)
                )
                first = metrics.pop("logprob_gap")
                gap = first if gap is None else gap
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + value / (trainer.epochs * trainer.minibatches)
        return totals | {"engine_gap": gap or 0.0}

    # ---------------------------------------------------------------- actors and state

    @contextmanager
    def _actors(self) -> Iterator[None]:
        config = self.config
        weights, model, _, _ = load_policy(self.cold)
        if model != config.model.shape:
            raise UserError(f"{self.cold} holds a model of another shape than the config's model section")
        trainer = config.trainer
        self._learner = LearnerGroup(
            model,
            config.optimizer,
            seed=config.seed,
            ranks=trainer.ranks,
            threads=trainer.threads,
            micro_tokens=trainer.micro_tokens,
            deadline_s=trainer.step_s,
            parallel=trainer.parallel,
        )
        if config.objective.kl:
            self._learner.set_reference(weights)
        self._texts = PtxTexts(config, self.cold / "tokenizer.json")
        environment = WorldEnvironment(config.envs.world)
        self._collector = Collector(config, environment, self.cold, weights)
        try:
            self.weights = weights
            yield
        finally:
            self._collector.close()
            self._learner.close()
            self._texts.close()

    def _restore(self) -> None:
        found = self.checkpoints.latest()
        if found is None:
            self._learner.load_weights(self.weights)
        else:
            self.state, path = found
            self._learner.load(path, "learner")
            self.weights = self._learner.weights()
        self._collector.sync(self.weights, self.state.policy_version)

    def _due(self) -> bool:
        step = self.state.step
        return step % self.config.trainer.checkpoint_every == 0 or step == self.config.trainer.steps

    def _save(self) -> None:
        size = 3 * sum(array.nbytes for array in self.weights.values())
        path = self.checkpoints.begin(self.state, size)
        self._learner.save(path, "learner")
        self.checkpoints.commit(self.state, path)


def _claim(run_dir: Path, config: Config, resume: bool) -> None:
    """Make ``run_dir`` this run's own: an older run there is moved aside, or continued with ``resume``."""
    resolved = to_yaml(config)
    file = run_dir / "config.yaml"
    if resume:
        if not file.exists():
            raise UserError(f"nothing to resume in {run_dir}: start without --resume")
        if file.read_text() != resolved:
            raise UserError(
                f"{file} differs from this configuration: resume with the same one, or start without --resume"
            )
        return
    if run_dir.exists():
        number = 1
        while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
            number += 1
        shutil.move(run_dir, aside)
        print(f"the earlier run is kept in {aside}")
    run_dir.mkdir(parents=True)
    file.write_text(resolved)
