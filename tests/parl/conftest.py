"""One Ray, one cold start and one finished run, for all tests that need them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import tiny_config

from parl.cold_start.imitation import run_sft
from parl.config.load import load_config, to_yaml
from parl.config.schema import Config
from parl.machine.cluster import local_ray
from parl.run.job import run_training


@pytest.fixture(scope="session")
def one_ray() -> Iterator[None]:
    """A Ray instance that every run of the session joins."""
    with local_ray():
        yield


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run as a file: four steps of eight short episodes, after a minimal cold start."""
    root = tmp_path_factory.mktemp("runs")
    config = tiny_config(
        root,
        sft={
            "tokens": 20_000,
            "copying_tokens": 2_000,
            "drill_tokens": 2_000,
            "batch_tokens": 600,
            "lr": 0.01,
            "muon_lr": 0.02,
        },
        rollouts={
            "group_size": 4,
            "tasks_per_step": 2,
            "concurrency": 8,
            "budget": {"orchestrator_steps": 6, "turn_tokens": 64},
        },
        trainer={"steps": 4, "ranks": 1},
        eval={"tasks": 6},
    )
    path = root / "tiny.yaml"
    path.write_text(to_yaml(config))
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_yaml: Path) -> Config:
    """The configuration of ``tiny_yaml``."""
    return load_config(tiny_yaml)


@pytest.fixture(scope="session")
def cold_start(one_ray: None, tiny_run: Config) -> Path:
    """Its cold start, trained once."""
    return run_sft(tiny_run, report=lambda done, total, metrics: None)


@pytest.fixture(scope="session")
def finished(one_ray: None, cold_start: Path, tiny_run: Config) -> Path:
    """The folder of the same run under another name, with its baseline, run to its end."""
    return run_training(tiny_run.model_copy(update={"name": "undisturbed", "baseline": True}))
