"""The process of one cell: its cold start, training, the choice of a checkpoint, and the evaluation.

Each part continues where a killed process left off: cold starts and training from their checkpoints, evaluations
from their stored episodes.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from model.family import family_of
from model.files import write_text
from model.policy_files import SINGLE, load_policy, save_policy
from parl.cold_start.shipped import Recipe, cold_start_hash
from parl.cold_start.starting_policy import shown_start, starting_policy
from parl.collect.free_running import free_running
from parl.collect.tasks import check_tasks, run_tasks
from parl.config.load import to_yaml
from parl.config.runs import CONFIG, trained_steps
from parl.config.schema import Config
from parl.evaluate.evaluation import evaluate
from parl.evaluate.policies import local_policy
from parl.learn.shard.learner_state import saved_weights
from parl.machine.cluster import local_ray
from parl.run.checkpoints import complete, newest_state
from parl.run.job import run_training
from parl.sweep.file import TRAINED
from parl.sweep.results.measure import mean_of, records
from parl.sweep.state import Folder, Order, Outcome

_LOOK_S = 2.0
_FINAL = "final"


def run_cell(file: Path) -> None:
    """Run the cell whose order is in ``file``, and write its outcome. UserError for mistakes with a fix."""
    began = time.monotonic()
    _end_with(os.getppid())
    order = Order.read(file)
    work = _Work(order, order.config())
    folder = Folder(file.parent.parent)
    spent = 0.0 if order.anew else newest_state(work.config.run_dir).elapsed_s  # by earlier processes

    def outcome(**parts: object) -> Outcome:
        given = {"key": order.key, "wall_s": round(spent + time.monotonic() - began, 1), "cold": work.cold_hash}
        return Outcome(**given | parts)  # pyright: ignore[reportArgumentType]

    if order.cold_start_alone:
        work.cold_start()
        folder.report(order.id, outcome())
        return
    if order.policy == TRAINED:
        work.train()
    with local_ray():
        name, policy, scores = work.checkpoint()
        store = "" if order.trial else work.evaluated(policy)
    folder.report(order.id, outcome(store=store, label=order.policy, checkpoint=name, scores=scores))


@dataclass(frozen=True, slots=True)
class _Work:
    order: Order
    config: Config

    @property
    def cold_hash(self) -> str:
        """Of its cold start."""
        return cold_start_hash(Recipe.of(self.config))

    def cold_start(self) -> Path:
        """Its folder, made if need be."""
        make = partial(starting_policy, self.config, check=free_running(self.config))
        return shown_start(self.config.name, make)

    def train(self) -> None:
        """Train to the last step, from the newest checkpoint of an earlier process."""
        folder = self.config.run_dir
        there = (folder / CONFIG).is_file() and not self.order.anew
        if not there or trained_steps(folder / "policy") < self.config.trainer.steps:
            run_training(self.config, resume=there, evaluated=False)

    def checkpoint(self) -> tuple[str, Path, dict[str, float]]:
        """The policy to evaluate: its name, its folder, and what was judged on val; of equals the last."""
        folder = self.config.run_dir
        if self.order.policy != TRAINED:
            if not (folder / CONFIG).is_file():  # for commands that read the run
                write_text(folder / CONFIG, to_yaml(self.config, marked=True))
            return self.order.policy, self.cold_start(), {}
        candidates: dict[str, Callable[[], Path]] = {}
        if self.order.checkpoint and self.config.optimizer.lora is None:
            for path in complete(folder / "checkpoints"):
                step = int(path.name.rpartition("-")[2])
                if 0 < step < self.config.trainer.steps:
                    candidates[path.name] = partial(self._policy_of, path)
        candidates[_FINAL] = lambda: folder / "policy"
        if not (self.order.trial or self.order.checkpoint):
            return _FINAL, candidates[_FINAL](), {}
        scores = {name: self._judged(make()) for name, make in candidates.items()}
        best = max(candidates, key=lambda name: (scores[name], list(candidates).index(name)))
        for name in candidates:
            if name not in (best, _FINAL):
                shutil.rmtree(folder / "candidates" / name, ignore_errors=True)
        return best, candidates[best](), scores

    def _policy_of(self, checkpoint: Path) -> Path:
        """The policy in a checkpoint, in the layout of a run's policy."""
        folder = self.config.run_dir / "candidates" / checkpoint.name
        if not (folder / SINGLE).exists():
            _, shape, tokenizer, _ = load_policy(self.config.run_dir / "policy", family_of(self.config.model))
            step = int(checkpoint.name.rpartition("-")[2])
            save_policy(folder, shape, saved_weights(checkpoint, shape.weights_dtype), tokenizer, {"step": step})
        return folder

    def _judged(self, policy: Path) -> float:
        val = self.config.eval.model_copy(update={"split": "val", "tasks": self.order.val_tasks})
        judged = _Work(self.order, self.config.model_copy(update={"eval": val}))
        store = judged.evaluated(policy, attempts=1)
        keys = [task.key for task in run_tasks(judged.config).held_out()]
        found = records(self.config.run_dir / store, self.order.policy, self.config.rewards, keys=keys)
        return mean_of(found, self.order.metric)

    def evaluated(self, policy: Path, *, attempts: int | None = None) -> str:
        """Evaluate ``policy`` where episodes are missing; returns their folder, below the run's."""
        config, label = self.config, self.order.policy
        spawning = config.rollouts.swarm and label != "cold_start_no_spawn"
        chosen = local_policy(config, self.cold_start(), label, policy, spawning=spawning)
        tasks = run_tasks(config) if attempts else check_tasks(config)
        evaluate(config, [chosen], tasks, n=attempts or self.order.attempts)
        return chosen.store.relative_to(config.run_dir).as_posix()


def _end_with(parent: int) -> None:
    """End in order when the process that started this one is gone: it cannot watch over it any more."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, daemon=True).start()
