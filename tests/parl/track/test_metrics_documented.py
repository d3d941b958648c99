"""docs/metrics.md lists exactly what a run logs, read back from an offline run by wandb's own reader."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from stored import chain_task, make_episode, wide_task

from parl.config.schema import Config, TrackingConfig
from parl.learn.config import OptimizerConfig
from parl.learn.objective.grpo import Grpo
from parl.run.loop import Training
from parl.track.progress import Progress
from parl.track.tracker import Tracker, read_rows
from parl.track.wandb_reader import wandb_files
from parl.track.wandb_views import charts
from rewards.aggregate import aggregate
from rewards.parl_reward import Parl
from rewards.score import score_episode
from rollouts.config import BudgetConfig, CurriculumConfig

pytestmark = pytest.mark.slow
DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"
CURRICULUM = CurriculumConfig(slack=2.0)
FAMILIES = ("wide", "chain")
SERVERS = dict.fromkeys(  # only with servers
    (
        *("engine/probe_gap", "engine/in_place", "engine/server_restarts"),
        *("engine/pause_s", "engine/pull_s", "engine/pulled_bytes", "engine/servers"),
    ),
    0.0,
)


def documented() -> set[str]:
    """Names in the first column of the tables, families filled in."""
    text = DOCS.read_text().split("## An episode's own numbers")[0]
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    names = {name for cell in cells for name in re.findall(r"`([a-z_0-9/A-Z]+)`", cell)}
    names = {name for name in names if "NAME" not in name}  # what a user's own score calls its parts
    plain = {name for name in names if "FAMILY" not in name}
    return plain | {name.replace("FAMILY", family) for name in names - plain for family in FAMILIES}


@pytest.fixture(scope="module")
def logged(one_ray: None, tiny_run: Config, cold_start: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names that wandb's reader finds in an offline run of everything that can be measured: two real steps with all
    options on, and, as the tiny policy neither spawns nor answers, the aggregate of made-up episodes that do."""
    config = tiny_run.model_copy(
        update={
            "objective": Grpo(correction="mis", kl=0.05, ptx=0.1, counterfactual=0.5),
            "optimizer": OptimizerConfig(qk_clip=1e-3),
            "rewards": Parl(schedule="saturation"),
            "rollouts": tiny_run.rollouts.model_copy(update={"budget": BudgetConfig(curriculum=CURRICULUM)}),
            "trainer": tiny_run.trainer.model_copy(update={"steps": 2, "staleness": 1}),
            "tracking": TrackingConfig(wandb="disabled"),
        }
    )
    folder = tmp_path_factory.mktemp("documented")
    Training(config, folder / "real", cold_start).run(Progress(2, "test"))
    episodes = [make_episode(task, spawning=True) for task in (wide_task(1), chain_task(2), wide_task(3))]
    episodes.append(make_episode(chain_task(4), spawning=False))
    weights = {"parallel": 0.3, "finish": 0.1, "critical": 0.25}
    for episode in episodes:
        score_episode(episode, Parl(), weights)
    saturation = Parl(schedule="saturation")
    tracker = Tracker(folder / "run", TrackingConfig(wandb="offline"))
    for row in read_rows(folder / "real" / "metrics.jsonl"):
        numbers = {name: value for name, value in row.items() if name not in ("step", "kind") and value is not None}
        numbers |= aggregate(episodes, Parl(), weights) | saturation.shown(saturation.observed({}, episodes, 0, 2))
        tracker.log(row["step"], numbers | SERVERS)
    tracker.finish()
    [file] = wandb_files(folder / "run")
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--summary", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return {name.removeprefix("train/") for name in json.loads(done.stdout)["summary"] if name.startswith("train/")}


def test_every_documented_metric_is_in_an_offline_run(logged):
    assert documented() - logged == set()


def test_every_logged_metric_is_documented(logged):
    asked = {name.split("/")[-1] for name in logged if name.startswith("perf/item_f1/")}
    families = documented() | {
        f"{name.rsplit('/', 1)[0]}/{family}" for name in documented() if name.endswith("/wide") for family in asked
    }
    assert logged - families - {"step"} == set()


def test_the_saved_workspace_charts_metrics_that_there_are(logged):
    families = {name.split("/")[-1] for name in logged if name.startswith("perf/item_f1/")}
    sections = charts(sorted(families), Parl()).values()
    charted = {name.removeprefix("train/") for titles in sections for names in titles.values() for name in names}
    assert charted <= logged


def test_each_documented_metric_has_a_formula():
    rows = re.findall(r"^\| `[a-z_]+/[^|]*` \|([^|]*)\|", DOCS.read_text().split("## An episode's")[0], re.MULTILINE)
    assert len(rows) > 30 and all(row.strip() for row in rows)
