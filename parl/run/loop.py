"""The training loop, top to bottom: collect → score → advantage → learn → sync → save → track.

With ``trainer.staleness`` episodes come from a stream in parallel (``parl.collect.stream``, docs/async.md).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.decoder import Weights
from model.family import family_of
from model.lora import merged
from model.policy_files import load_policy, save_policy
from parl.cold_start.ptx import PtxTexts
from parl.cold_start.shipped import Recipe
from parl.collect.collector import Collector
from parl.collect.pools import RolloutSide, pool_sizes
from parl.collect.sampling import draw_groups, groups, informative, mixed_groups
from parl.collect.stream import EpisodeStream
from parl.collect.tasks import run_tasks
from parl.config.runs import trained_steps
from parl.config.schema import Config
from parl.errors import UserError
from parl.learn.group import LearnerGroup
from parl.learn.rows import Row, step_rows
from parl.learn.shard.learner_state import saved_weights
from parl.run.checkpoints import Checkpoints, State
from parl.run.mirror import Mirror
from parl.run.readable_turns import check_readable
from parl.run.saver import Saver
from parl.run.timeline import POOLS, Timeline
from parl.track.progress import Progress
from parl.track.tracker import Tracker
from rewards.aggregate import aggregate
from rewards.base import Weights as RewardWeights
from rewards.group import note_groups
from rewards.score import score_episode
from rollouts.episode import Episode
from rollouts.store.store import EpisodeStore

_MISMATCH = {  # the learner's names and the logged ones
    "logprob_gap": "engine_gap",
    "mismatch_kl": "mismatch_kl",
    "route_overlap": "route_overlap",
    "route_overlap_min": "route_overlap_min",
}


class Training:
    """One policy's training in one folder."""

    _mirror: Mirror | None = None

    def __init__(self, config: Config, folder: Path, cold: Path, mirror: Mirror | None = None) -> None:
        self.config, self.folder, self.cold = config, folder, cold
        self._mirror = mirror
        self.checkpoints = Checkpoints(folder / "checkpoints", config.trainer.keep_checkpoints)
        self.store = EpisodeStore(folder / "episodes")
        self.tasks = run_tasks(config)
        self.state = State()
        self.weights: Weights = {}
        self._learner: LearnerGroup
        self._saver: Saver
        self._collector: Collector
        self._stream: EpisodeStream | None = None
        self._timeline: Timeline
        self._texts: PtxTexts

    def run(self, progress: Progress) -> Path:
        """Train to the last step, from the newest checkpoint if there is one; returns the policy's folder."""
        final = self.folder / "policy"
        if trained_steps(final) >= self.config.trainer.steps:
            return final
        progress.phase("starting engines and learner")
        with self._actors():
            self._restore()
            if self.state.wandb_id is None:  # saved before anything is logged: a resumed run continues the same W&B run
                self.state.wandb_id = secrets.token_hex(4)
                self._save()
                self._saver.wait()
            shown, state = self.config.model_dump(mode="json"), self.state
            tracker = Tracker(self.folder, self.config.tracking, state.wandb_id, state.step, settings=shown)
            try:
                self.store.discard_after(self.state.step + (0 if self._stream else 1))
                while self.state.step < self.config.trainer.steps:
                    metrics = self._step(progress)
                    tracker.log(self.state.step, metrics)  # before the checkpoint: a kill in between logs it again
                    self._learner.touched = False
                    if self._due():
                        with self._timeline.span(self.state.step, "save"):
                            self._save(self._score(metrics))
                    progress.update(self.state.step, metrics)
                self._saver.wait()
                base, model, tokenizer, _ = load_policy(self.cold, family_of(self.config.model))
                best = self.checkpoints.best()
                if best is not None and self.config.optimizer.lora is None:  # adapters are merged only at the end
                    found = saved_weights(best, model.weights_dtype)
                    save_policy(self.folder / "policy_best", model, found, tokenizer, {"from": best.name})
                meta = {"step": self.state.step, "policy_version": self.state.policy_version}
                save_policy(final, model, merged(base, self.weights), tokenizer, meta)
            except KeyboardInterrupt:
                whole = not (self._stream or self._learner.touched or self._due())
                self._saver.save_last(self.state if whole else None)
                raise
            finally:
                tracker.finish()
        return final

    # ---------------------------------------------------------------- one step

    def _step(self, progress: Progress) -> dict[str, float]:
        began = time.monotonic()
        self._saver.check()
        if self._mirror:
            self._mirror.check()
        step = self.state.step + 1
        steps, rewards = self.config.trainer.steps, self.config.rewards
        lambdas = rewards.weights_after(self.state.schedule, self.state.step, steps)
        curriculum = self.config.rollouts.budget.curriculum
        slack = curriculum.slack_at(self.state.step, steps)
        with self._timeline.span(step, "collect"):
            episodes = self._collect(step, lambdas, progress)
        if self.state.step == 0:
            check_readable(episodes, self.config.trainer.most_unread, self.cold)
        collected = time.monotonic()
        progress.phase("learning")
        objective = self.config.objective
        staleness = self._staleness(episodes)
        with self._timeline.span(step, "learn"):
            kept = episodes if self.config.rollouts.dynamic_sampling is None else informative(episodes)
            routed = self.config.model.routes is not None
            rows = step_rows(
                kept,
                routed=routed,
                normalise_std=objective.normalises,
                credit=objective.credit,
                counterfactual=objective.counterfactual,
                outcome=rewards.outcome,
            )
            learned = self._learn(rows)
            self.weights = self._learner.weights()
        trained = time.monotonic()
        with self._timeline.span(step, "sync"):
            sync_s = self._sync(len(episodes) // self.config.rollouts.group_size)
        self.state.schedule = rewards.observed(self.state.schedule, episodes, self.state.step, steps)
        self.state.step = step
        self.state.episodes += len(episodes)
        self.state.elapsed_s += time.monotonic() - began
        tokens = sum(sum(trace.mask) for episode in episodes for trace in episode.traces)
        return {
            **aggregate(episodes, rewards, lambdas),
            **{f"lambda/{name}": value for name, value in lambdas.items()},
            **rewards.shown(self.state.schedule),
            **{f"policy/{name}": value for name, value in learned.items()},
            "policy/version": self.state.policy_version,
            **staleness,
            **({"rollouts/budget_slack": slack} if curriculum.slack > 1 else {}),
            "rollouts/tokens": tokens,
            "rollouts/groups": groups(episodes),
            "rollouts/flat_groups": groups(episodes) - groups(informative(episodes)),
            **({"rollouts/mixed_groups": mixed_groups(episodes)} if objective.counterfactual else {}),
            "rollouts/restarts": self._collector.restarts,
            **self._engine_metrics(),
            "speed/tokens_per_s": tokens / ((time.monotonic() if self._stream else collected) - began),
            "time/collect_s": collected - began,
            "time/learn_s": trained - collected,
            "time/sync_s": sync_s,
            "time/step_s": time.monotonic() - began,
        }

    def _staleness(self, episodes: list[Episode]) -> dict[str, float]:
        """Mean and largest age of the trainable tokens in versions, which is bounded."""
        traces = [trace for episode in episodes for trace in episode.traces if trace.trainable]
        versions = [version for trace in traces for version in trace.versions if version >= 0]
        ages = [self.state.policy_version - version for version in versions] or [0]
        if max(ages) > self.config.trainer.staleness or min(ages) < 0:
            raise RuntimeError(
                f"tokens of version {min(versions)} to {max(versions)} reached the learner at version"
                f" {self.state.policy_version} with trainer.staleness={self.config.trainer.staleness}"
            )
        return {"policy/staleness": sum(ages) / len(ages), "policy/staleness_max": max(ages)}

    def _sync(self, drawn: int) -> float:
        """Serve the new weights after a step of ``drawn`` tasks, and let the stream go on. Returns seconds."""
        in_flight = self._stream is not None
        if self._stream and self._collector.servers_change():
            self._stream.halt()
        seconds = self._collector.sync(self.weights, self.state.policy_version + 1, in_flight=in_flight)
        self.state.policy_version += 1
        self.state.tasks_drawn += drawn
        if self._stream:
            self._stream.advance()
            self.state.tasks_drawn = self._stream.scheduler.next
        return seconds

    def _busy(self) -> dict[str, float]:
        """Seconds that each pool's engines have computed, as mean over replicas; servers do not report it."""
        counters, counts = self._collector.statistics(), pool_sizes(self.config.rollouts)
        return {pool: counters.get(f"{pool}/busy_s", 0.0) / max(counts[pool], 1) for pool in POOLS}

    def _engine_metrics(self) -> dict[str, float]:
        """Busy shares of learner and engines, prefix-cache hits, and how servers took the weights."""
        counters = self._collector.statistics()
        servers = self._collector.servers
        names = ("probe_gap", "in_place", "server_restarts", "pause_s", "pull_s", "pulled_bytes") if servers else ()
        served = {f"engine/{name}": counters[f"policy/{name}"] / servers for name in names}
        served |= {"engine/servers": servers} if servers else {}
        busy = {f"speed/{name}_busy": share for name, share in self._timeline.utilisation().items()}
        spared = {
            f"speed/{pool}_prefix_hit_rate": counters[f"{pool}/prefix_hits"]
            / max(counters[f"{pool}/prefix_asked"], 1.0)
            for pool in POOLS
            if f"{pool}/prefix_hits" in counters
        }
        return served | busy | spared | (self._stream.metrics() if self._stream else {})

    def _collect(self, step: int, lambdas: RewardWeights, progress: Progress) -> list[Episode]:
        """This step's scored episodes, from the store if a killed run had collected them."""
        if self._stream is None:
            stored = self.store.read(step)
            if stored is not None and stored[1] == self.state.policy_version:
                return stored[0]
            episodes = self._fresh(lambdas, progress)
        else:
            episodes = self._stream.take(lambda done, total: progress.phase("waiting for episodes", done, total))
            if not self.config.trainer.overlap:
                self._stream.halt()
            self._score_all(episodes, lambdas)
        self.store.write(step, episodes, policy_version=self.state.policy_version)
        return episodes

    def _fresh(self, lambdas: RewardWeights, progress: Progress) -> list[Episode]:
        """New scored episodes of the step's tasks."""
        rollouts = self.config.rollouts
        slack = rollouts.budget.curriculum.slack_at(self.state.step, self.config.trainer.steps)

        def draw(first: int, count: int) -> list[Episode]:
            episodes = self._collector.collect(
                self.tasks.take(self.state.tasks_drawn + first, count),
                group_size=rollouts.group_size,
                seed=self.config.seed,
                temperature=rollouts.temperature,
                slack=slack,
                progress=lambda done, total: progress.phase("rolling out", done, total),
            )
            self._score_all(episodes, lambdas)
            return episodes

        return draw_groups(draw, rollouts.tasks_per_step, rollouts.dynamic_sampling or 0)

    def _score_all(self, episodes: list[Episode], lambdas: RewardWeights) -> None:
        note_groups(episodes, self.config.rewards)
        told = self.config.rewards.told(self.state.schedule)
        for episode in episodes:
            episode.metrics |= told
            score_episode(episode, self.config.rewards, lambdas)

    def _learn(self, rows: list[Row]) -> dict[str, float]:
        """``epochs`` passes of ``minibatches`` optimiser steps, groups kept whole; metrics averaged."""
        trainer, keys = self.config.trainer, list(dict.fromkeys(row.key[0] for row in rows))
        done = self.state.step / trainer.steps
        lr_scale = 1.0 - done * (1.0 - self.config.optimizer.final_lr)
        totals: dict[str, float] = {}
        taken = 0  # optimiser steps: fewer with fewer groups than minibatches
        first: dict[str, float] = {}  # engine against learner, only before the first update
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
                mismatch = {shown: metrics.pop(name) for name, shown in _MISMATCH.items() if name in metrics}
                first = first or mismatch
                taken += 1
                for name, value in metrics.items():
                    totals[name] = totals.get(name, 0.0) + value
        return {name: value / taken for name, value in totals.items()} | first

    # ---------------------------------------------------------------- actors and state

    @contextmanager
    def _actors(self) -> Iterator[None]:
        config = self.config
        weights, model, _, _ = load_policy(self.cold, family_of(self.config.model))
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
            drawn=False,
            device=trainer.device,
        )
        if config.objective.kl:
            self._learner.set_reference(weights, self.cold)
        ptx, step_s = config.objective.ptx, trainer.step_s
        self._texts = PtxTexts(Recipe.of(config), self.cold, weight=ptx, deadline_s=step_s)
        self._saver = Saver(self.checkpoints, self._learner)
        kept = self.folder / "subagents"
        self._collector = Collector(RolloutSide.of(config), self.cold, weights, kept=kept)
        self._timeline = Timeline(self.folder / "timeline.jsonl", self._busy)
        try:
            self.weights = weights
            yield
        finally:
            if self._stream:
                self._stream.close()
            self._saver.close()
            self._collector.close()
            self._learner.close()
            self._texts.close()

    def _restore(self) -> None:
        found = self.checkpoints.latest()
        self._learner.load_weights(self.weights, self.cold)
        if found is not None:
            self.state, path = found
            self._learner.load(path.parent, path.name)
            self.weights = self._learner.weights()
        self._collector.sync(self.weights, self.state.policy_version)
        if self.config.trainer.staleness:
            given = (self.config.rollouts, self.config.trainer, self._collector, self.tasks)
            self._stream = EpisodeStream(*given, self.state.policy_version)
            if found:
                self._stream.load(found[1], self.state.step)

    def _due(self) -> bool:
        step = self.state.step
        return step % self.config.trainer.checkpoint_every == 0 or step == self.config.trainer.steps

    def _save(self, score: float | None = None) -> None:
        stream, step = self._stream, self.state.step
        if self._mirror:  # the last checkpoint must be there before it may be dropped here
            self._saver.wait()
            self._mirror.flush()
        self._saver.save(self.state, score, beside=(lambda path: stream.save(path, step)) if stream else None)

    def _score(self, metrics: dict[str, float]) -> float | None:
        """The metric that selects the best checkpoint."""
        name = self.config.trainer.keep_best
        if name == "reward/perf" and name not in metrics:  # the default, where nothing scores episodes
            name = "reward/total"
        if name is not None and name not in metrics and self.state.step == 1:
            known = ", ".join(sorted(metrics))
            raise UserError(f"trainer.keep_best = {name} is no metric that every step has: take one of {known}")
        return metrics.get(name) if name is not None else None
