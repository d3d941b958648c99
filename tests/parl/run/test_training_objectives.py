"""A short run on two ranks with all optional features: their metrics are there, and no others."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from parl.config.schema import Config
from parl.learn.config import OptimizerConfig
from parl.learn.objective.grpo import Grpo
from parl.run.loop import Training
from parl.track.progress import Progress

pytestmark = pytest.mark.slow


def test_correction_reference_imitation_and_qk_clip_work_together(
    one_ray: None, tiny_run: Config, cold_start: Path, tmp_path: Path
):
    config = tiny_run.model_copy(
        update={
            "objective": Grpo(correction="mis", kl=0.05, ptx=0.1),
            "optimizer": OptimizerConfig(qk_clip=1e-3),
            "trainer": tiny_run.trainer.model_copy(update={"steps": 2, "ranks": 2}),
        }
    )
    Training(config, tmp_path, cold_start).run(Progress(2, "test"))
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    for metrics in (first, second):
        assert metrics["policy/ptx_loss"] > 0 and metrics["policy/corrected"] == 0  # the engine is exact
        assert metrics["policy/max_logit"] > 1e-3 and 0 < metrics["policy/clipped_heads"] <= 1
        assert all(math.isfinite(value) for value in metrics.values() if isinstance(value, float))
    assert second["policy/reference_kl"] > 1e-4  # it has left the cold start
    assert second["policy/max_logit"] < first["policy/max_logit"]


def test_dynamic_sampling_draws_more_tasks_and_the_cursor_follows(
    one_ray: None, tiny_run: Config, cold_start: Path, tmp_path: Path
):
    rollouts = tiny_run.rollouts.model_copy(update={"dynamic_sampling": 1})
    config = tiny_run.model_copy(
        update={"rollouts": rollouts, "trainer": tiny_run.trainer.model_copy(update={"steps": 2})}
    )
    training = Training(config, tmp_path, cold_start)
    training.run(Progress(2, "test"))
    seen = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for metrics in seen:
        first = min(metrics["rollouts/flat_groups"], rollouts.tasks_per_step)
        assert rollouts.tasks_per_step <= metrics["rollouts/groups"] <= rollouts.tasks_per_step + first
    assert training.state.tasks_drawn == sum(metrics["rollouts/groups"] for metrics in seen)
    assert training.state.episodes == training.state.tasks_drawn * rollouts.group_size
