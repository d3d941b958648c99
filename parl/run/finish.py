"""Held-out evaluation: every policy on the same tasks, one table, the summary file and the report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.files import write_text
from model.kimi.files.checkpoint import load_policy
from parl import __version__
from parl.collect.collector import Collector
from parl.collect.tasks import held_out_tasks
from parl.config.groups import KEY, kept_groups, task_groups
from parl.config.schema import Config
from parl.evaluate.table import print_table
from parl.machine.memory import PeakMemory
from parl.report import write_report
from parl.report.episodes import sampled_episodes
from parl.run.state import newest_state
from parl.shown.terminal import echo
from parl.track.progress import Progress
from parl.track.tracker import Tracker
from rewards.aggregate import evaluation_table
from rewards.score import score_episode
from rollouts.episode import Episode
from rollouts.store.store import EpisodeStore

_TEXT = 400  # characters of a question or an answer in the table of sampled episodes
Policies = dict[str, tuple[Path, bool]]  # label -> (folder of the policy, whether it may spawn)


def evaluate_policies(
    config: Config,
    run_dir: Path,
    policies: Policies,
    *,
    cold: Path,
    began: float,
    memory: PeakMemory,
    progress: Progress,
) -> dict[str, Any]:
    """Evaluate, write ``summary.json`` and ``report.html`` in ``run_dir``; returns the summary."""
    store = EpisodeStore(run_dir / "eval")
    summary: dict[str, Any] = {}
    groups = task_groups(config)
    with eval_collector(config, cold) as collector:
        for number, (label, (folder, spawning)) in enumerate(policies.items()):
            progress.phase(f"evaluating {label}", number, len(policies))
            episodes = evaluate_policy(config, collector, folder, spawning=spawning)
            store.write(0, episodes, policy_version=0, kind=label)
            summary[label] = evaluation_table(episodes, groups)
    summary |= {
        KEY: kept_groups(groups),
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


def track_evaluation(config: Config, run_dir: Path, tables: dict[str, dict[str, dict]]) -> None:
    """The held-out numbers and the report into the trained policy's W&B run."""
    state = newest_state(run_dir)
    tracker = Tracker(run_dir, config, state.wandb_id, state.step)
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
    """Columns and rows of the episodes that the report shows, each with its place in it."""
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


@contextmanager
def eval_collector(config: Config, cold: Path) -> Iterator[Collector]:
    """Engines and workers for any number of policies; frozen sub-agents are the cold start."""
    frozen, _, _, _ = load_policy(cold)
    collector = Collector(config, config.envs.build(), cold, frozen)
    try:
        yield collector
    finally:
        collector.close()


def evaluate_policy(config: Config, collector: Collector, folder: Path, *, spawning: bool) -> list[Episode]:
    """One scored episode of every held-out task. Weights are those at which training ends."""
    weights, _, _, _ = load_policy(folder)
    collector.serve(weights)
    settings = {"seed": config.eval.seed, "temperature": config.eval.temperature, "top_p": config.eval.top_p}
    episodes = collector.collect(held_out_tasks(config), group_size=1, spawning=spawning, **settings)
    for episode in episodes:
        score_episode(episode, config.rewards, config.rewards.held_out())
    return episodes
