"""A W&B workspace with charts for swarm runs.

    python -m parl.track.wandb_views ENTITY PROJECT        # needs pip install wandb-workspaces and a W&B key
    python -m parl.track.wandb_views --list                # the charts, without W&B

W&B keeps workspaces on its server, so this needs the network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from parl.config.runs import configuration
from parl.config.schema import Config
from parl.episodes.groups import families, task_groups
from parl.errors import UserError
from parl.shown.terminal import echo
from rewards.base import PERF, Reward

FAMILY = "{family}"  # in a name: one curve per family of tasks
PART = "{part}"  # ... per weighted part of the reward

# section -> charts: title -> names on the axis train/step
SECTIONS: dict[str, dict[str, list[str]]] = {
    "Reward": {
        "total": ["train/reward/total"],
        "parts, unweighted": ["train/reward/perf", f"train/reward/{PART}"],
        "parts, weighted": ["train/reward/weighted/perf", f"train/reward/weighted/{PART}"],
        "λ": [f"train/lambda/{PART}"],
        "item-F1 by family": [f"train/perf/item_f1/{FAMILY}"],
    },
    "Critical steps": {
        "mean, median, p95": [f"train/steps/{name}" for name in ("critical", "critical_p50", "critical_p95")],
        "by family": [f"train/steps/critical/{FAMILY}"],
        "agents at work": ["train/swarm/parallelism"],
    },
    "Swarm": {
        "sub-agents": ["train/swarm/subagents"],
        "spawn rate by family": [f"train/swarm/spawn_rate/{FAMILY}"],
        "useless, duplicate": ["train/swarm/useless_spawn_rate", "train/swarm/duplicate_rate"],
        "finish rate": ["train/swarm/finish_rate"],
        "ends of episodes": [f"train/episodes/{name}" for name in ("answered", "over_budget", "malformed", "failed")],
    },
    "Format": {
        "turns that cannot be read, or were cut": ["train/turns/unread", "train/turns/cut"],
        "calls an episode": ["train/turns/calls"],
    },
    "Policy": {
        "entropy": ["train/policy/entropy"],
        "engine against learner": ["train/policy/engine_gap"],
        "ratio, masked": ["train/policy/ratio", "train/policy/masked"],
        "gradient norm": ["train/policy/grad_norm"],
        "staleness": ["train/policy/staleness"],
    },
    "Speed": {
        "tokens a second": ["train/speed/tokens_per_s"],
        "time": ["train/time/collect_s", "train/time/learn_s", "train/time/sync_s"],
        "latency, model": ["train/latency/model_p50", "train/latency/model_p95"],
        "latency, tools": ["train/latency/tool_p50", "train/latency/tool_p95"],
        "errors of tools": ["train/rollouts/tool_error_rate"],
    },
}


def charts(families: Sequence[str], reward: Reward) -> dict[str, dict[str, list[str]]]:
    """``SECTIONS`` for these families and ``reward``'s weighted parts."""
    weighed = [part for part in reward.weights(0, 1) if part != PERF]

    def named(name: str) -> list[str]:
        if PART in name:
            return [name.replace(PART, part) for part in weighed]
        return [name.replace(FAMILY, family) for family in families] if FAMILY in name else [name]

    return {
        section: {title: [curve for name in names for curve in named(name)] for title, names in titles.items()}
        for section, titles in SECTIONS.items()
    }


def workspace(entity: str, project: str, families: Sequence[str], reward: Reward) -> Any:
    """The workspace, not yet saved. UserError without the library."""
    try:
        import wandb_workspaces.reports.v2 as reports  # pyright: ignore
        import wandb_workspaces.workspaces as workspaces  # pyright: ignore
    except ImportError:
        raise UserError("this needs wandb-workspaces: pip install wandb-workspaces") from None
    sections = [
        workspaces.Section(
            name=name,
            is_open=True,
            panels=[reports.LinePlot(title=title, x="train/step", y=names) for title, names in titles.items()],
        )
        for name, titles in charts(families, reward).items()
    ]
    return workspaces.Workspace(entity=entity, project=project, name="parl", sections=sections)


def main() -> None:
    """Save the workspace and print its address."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entity", nargs="?")
    parser.add_argument("project", nargs="?", default="parl")
    parser.add_argument("--config", type=Path, help="a run or configuration, whose environment names the families")
    parser.add_argument("--list", action="store_true", help="print the charts only")
    options = parser.parse_args()
    try:
        config = configuration(options.config, files=False) if options.config else Config()
        known = families([group for group in task_groups(config.envs) if group.always])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    if options.list or not options.entity:
        for section, titles in charts(known, config.rewards).items():
            for title, names in titles.items():
                echo(f"{section} · {title}: {', '.join(names)}")
        return
    try:
        made = workspace(options.entity, options.project, known, config.rewards)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    made.save()
    echo(made.url)


if __name__ == "__main__":
    main()
