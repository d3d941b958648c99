"""A saved W&B workspace with the charts that a swarm run is watched by.

    python -m parl.track.wandb_views ENTITY PROJECT        # needs pip install wandb-workspaces and a W&B key
    python -m parl.track.wandb_views --list                # the charts, without W&B

W&B keeps workspaces on its server, so this is the one thing here that needs the network.
"""

from __future__ import annotations

import argparse
from typing import Any

from parl.config.errors import UserError
from parl.shown.terminal import echo

FAMILIES = ("wide", "list", "swap", "chain", "single_fact")


def _by_family(name: str) -> list[str]:
    return [f"train/{name}/{family}" for family in FAMILIES]


# section -> charts: title -> names on the axis train/step
SECTIONS: dict[str, dict[str, list[str]]] = {
    "Reward": {
        "total": ["train/reward/total"],
        "parts, unweighted": [f"train/reward/{part}" for part in ("perf", "parallel", "finish", "critical")],
        "parts, weighted": [f"train/reward/weighted/{part}" for part in ("perf", "parallel", "finish", "critical")],
        "λ": ["train/lambda/parallel", "train/lambda/finish", "train/lambda/critical"],
        "item-F1 by family": _by_family("perf/item_f1"),
    },
    "Critical steps": {
        "mean, median, p95": [f"train/steps/{name}" for name in ("critical", "critical_p50", "critical_p95")],
        "by family": _by_family("steps/critical"),
        "agents at work": ["train/swarm/parallelism"],
    },
    "Swarm": {
        "sub-agents": ["train/swarm/subagents"],
        "spawn rate by family": _by_family("swarm/spawn_rate"),
        "useless, duplicate": ["train/swarm/useless_spawn_rate", "train/swarm/duplicate_rate"],
        "finish rate": ["train/swarm/finish_rate"],
        "ends of episodes": [f"train/episodes/{name}" for name in ("answered", "over_budget", "malformed", "failed")],
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


def workspace(entity: str, project: str) -> Any:
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
            panels=[reports.LinePlot(title=title, x="train/step", y=names) for title, names in charts.items()],
        )
        for name, charts in SECTIONS.items()
    ]
    return workspaces.Workspace(entity=entity, project=project, name="parl", sections=sections)


def main() -> None:
    """Save it, and say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entity", nargs="?")
    parser.add_argument("project", nargs="?", default="parl")
    parser.add_argument("--list", action="store_true", help="print the charts only")
    options = parser.parse_args()
    if options.list or not options.entity:
        for section, charts in SECTIONS.items():
            for title, names in charts.items():
                echo(f"{section} · {title}: {', '.join(names)}")
        return
    try:
        made = workspace(options.entity, options.project)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    made.save()
    echo(made.url)


if __name__ == "__main__":
    main()
