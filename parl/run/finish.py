"""The end of a run: held-out evaluation, summary, report, and their upload to W&B."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from model.files import write_text
from parl import __version__
from parl.collect.tasks import Tasks
from parl.config.schema import Config, TrackingConfig
from parl.episodes.groups import KEY, kept_groups
from parl.episodes.stores import STORES
from parl.evaluate.evaluation import evaluate
from parl.evaluate.policies import local_policy
from parl.evaluate.table import print_table
from parl.machine.peak_memory import PeakMemory
from parl.report import write_report
from parl.report.episodes import sampled_episodes
from parl.run.checkpoints import newest_state
from parl.shown.terminal import echo
from parl.track.progress import Progress
from parl.track.tracker import Tracker

_TEXT = 400  # characters of a question or answer in the table of episodes
Policies = dict[str, tuple[Path, bool]]  # label -> (policy folder, whether it may spawn)


def evaluate_policies(
    config: Config,
    run_dir: Path,
    policies: Policies,
    tasks: Tasks,
    *,
    cold: Path,
    began: float,
    memory: PeakMemory,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluate, write ``summary.json`` and ``report.html`` in ``run_dir``; returns the summary."""
    chosen = [
        local_policy(config, cold, label, folder, spawning=spawns) for label, (folder, spawns) in policies.items()
    ]
    measured = evaluate(config, chosen, tasks, bar=progress.part)["policies"]
    summary: dict[str, Any] = {label: measured[label]["means"] for label in policies}
    summary |= {
        KEY: kept_groups(tasks.environment.groups),
        STORES: {policy.label: policy.store.relative_to(run_dir).as_posix() for policy in chosen},
        "wall_s": round(time.monotonic() - began, 1),
        "peak_rss_gib": round(memory.peak_gib, 2),
        "seed": config.seed,
        "version": __version__,
    }
    write_text(run_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    report = write_report(run_dir, run_dir / "report.html")
    progress.phase("")
    print_table({label: summary[label] for label in policies})
    echo(f"report: {report}")
    return summary


def track_evaluation(
    run_dir: Path, tables: dict[str, dict[str, dict]], tracking: TrackingConfig, settings: dict[str, Any]
) -> None:
    """Log the held-out numbers and the report to the trained policy's W&B run."""
    state = newest_state(run_dir)
    tracker = Tracker(run_dir, tracking, state.wandb_id, state.step, settings=settings)
    try:
        flat = {
            f"{label}/{group}/{name}": value
            for label, table in tables.items()
            for group, row in table.items()
            for name, value in row.items()
            if value is not None
        }
        tracker.log(state.step, flat, kind="eval")
        tracker.summary(flat)
        names = sorted({name for table in tables.values() for row in table.values() for name in row})
        rows = [
            [label, group, *(row.get(name) for name in names)]
            for label, table in tables.items()
            for group, row in table.items()
        ]
        tracker.table("evaluation", ["policy", "tasks", *names], rows)
        tracker.table("episodes", *_sampled(run_dir))
        tracker.artifact(run_dir / "report.html", f"{run_dir.name}-report", kind="report")
    finally:
        tracker.finish()


def _sampled(run_dir: Path) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of the episodes in the report."""
    columns = [
        "episode",
        "kind",
        "tasks",
        "status",
        "reward",
        "critical steps",
        "sub-agents",
        "question",
        "answer",
        "link",
    ]
    rows = []
    for shown in sampled_episodes(run_dir):
        episode, name = shown.episode, shown.name
        rows.append(
            [
                name,
                shown.kind,
                episode.task.family,
                str(episode.status),
                episode.rewards.get("total"),
                episode.metrics.get("critical_steps"),
                len(episode.subagents),
                episode.task.prompt[:_TEXT],
                episode.answer[:_TEXT],
                f"report.html#{name}",
            ]
        )
    return columns, rows
