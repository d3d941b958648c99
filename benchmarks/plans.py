"""What three scripted plans cost in the embedded world: serial calls, parallel calls by one agent, sub-agents.

    python benchmarks/plans.py configs/quickstart.yaml                                  # by family and width
    python benchmarks/plans.py configs/quickstart.yaml envs.config.entities=9600 --widths 64 --tasks 3
    python benchmarks/plans.py configs/quickstart.yaml --depths 1 2 4 8 --widths 12     # deep tables of one depth

No model is involved: the plans are right by construction, so this is what the world itself makes possible. `context`
is the orchestrator's longest context; `fits`, the share of tasks in which it is within model.max_position_embeddings;
`path` the sampled tokens on the longest path; `seconds` those of rewards.latency; the last two columns are the ratios
of one agent with parallel calls to sub-agents.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.base import Environment, Role, Task
from envs.world.reference import ReferencePolicy, Style, subagent_act
from model.chat.base import ChatFormat
from model.tokenizer.tokenizer import Tokenizer
from parl.cold_start.shipped import Recipe, shipped
from parl.cold_start.vocabulary import build_tokenizer
from parl.config.family import chat_format
from parl.config.load import load_config
from parl.config.schema import Config
from rollouts.config import BudgetConfig
from rollouts.costs import LatencyModel, modelled_makespan, path_tokens, total_tokens
from rollouts.critical_path import critical_steps
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import Episode, Trace
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

PLANS: dict[str, Style] = {"serial": "serial", "parallel calls": "direct", "sub-agents": "parallel"}
FAMILIES = ("wide", "list", "deep", "long", "deep_list", "two_phase")
_ROOMY = BudgetConfig(
    orchestrator_steps=10**4,
    subagent_steps=10**3,
    subagents=10**3,
    direct_calls=10**3,
    turn_tokens=10**6,
    total_tokens=10**9,
)


async def played(task: Task, style: Style, environment: Environment, chat: ChatFormat) -> Episode:
    """The episode of the scripted policy of ``style`` on ``task``, without a bound on its context."""
    policy = ReferencePolicy(style, seed=1)

    def pool(trace: Trace) -> ScriptedEngine:
        if trace.role is Role.ORCHESTRATOR:
            return ScriptedEngine(trace, chat, lambda history: policy.act(task, history))
        return ScriptedEngine(trace, chat, lambda history: subagent_act(trace.prompt, history))

    settings = SwarmSettings(chat=chat, pool=pool, budget=_ROOMY, score=None)
    return await run_episode(task, environment, settings, index=0, seed=0, critical_budget=0)


def costs(episode: Episode, latency: LatencyModel) -> dict[str, float]:
    """What is printed of one episode."""
    return {
        "steps": critical_steps(episode),
        "context": len(episode.orchestrator.tokens),
        "path": path_tokens(episode),
        "tokens": total_tokens(episode),
        "seconds": modelled_makespan(episode, latency),
    }


async def measured(config: Config, family: str, width: int, count: int, split: str) -> dict[str, dict[str, float]]:
    """Means by plan over ``count`` tasks of ``family`` with ``width`` rows (0: any)."""
    environment = config.envs.build()
    recipe = Recipe.of(config)
    folder = shipped(recipe)
    tokenizer = Tokenizer.load(folder / "tokenizer.json") if folder else build_tokenizer(recipe)
    chat = chat_format(recipe.model, recipe.rollouts, tokenizer)
    latency: LatencyModel = config.rewards.latency
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PLANS}
    for task in environment.held_out(split, config.eval.seed, count):
        if width and task.width != width:
            continue
        for name, style in PLANS.items():
            found[name].append(costs(await played(task, style, environment, chat), latency))
    await environment.close()
    limit = config.model.max_position_embeddings
    means: dict[str, dict[str, float]] = {}
    for name, rows in found.items():
        if rows:
            means[name] = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
            means[name] |= {"fits": statistics.mean(row["context"] <= limit for row in rows), "tasks": len(rows)}
    return means


def main() -> None:
    """Print one block a family, width and depth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("settings", nargs="*", help="KEY=VALUE")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=None)
    parser.add_argument("--widths", nargs="+", type=int, default=[2, 4, 8, 12, 16])
    parser.add_argument("--depths", nargs="+", type=int, default=[0], help="pages of a file; 0: as configured")
    parser.add_argument("--tasks", type=int, default=12, help="of each block")
    parser.add_argument("--split", default="val", choices=["train", "val", "test"])
    given = parser.parse_intermixed_args()
    families = given.families or (("deep",) if given.depths != [0] else ("wide", "deep", "long"))
    print("family  width depth plan            steps context fits   path tokens seconds | path x seconds x")
    for family in families:
        for depth in given.depths:
            for width in given.widths:
                own = [f"envs.config.mix={{{family}: 1}}", f"envs.config.widths=[{width},{width}]"]
                own += [f"envs.config.deep_widths=[{width},{width}]"]
                own += [f"envs.config.depth=[{depth},{depth}]"] if depth else []
                config = load_config(given.config, [*given.settings, *own])
                means = asyncio.run(measured(config, family, width, given.tasks, given.split))
                _show(family, width, depth, means)


def _show(family: str, width: int, depth: int, means: dict[str, dict[str, float]]) -> None:
    for plan, row in means.items():
        numbers = (
            f"{row['steps']:5.1f} {row['context']:7.0f} {row['fits']:4.2f} {row['path']:6.0f} {row['tokens']:6.0f}"
        )
        line = f"{family:8}{width:5} {depth or '':>5} {plan:15} {numbers} {row['seconds']:7.1f}"
        if plan == "sub-agents":
            beside = means["parallel calls"]
            line += f" | {beside['path'] / row['path']:6.2f} {beside['seconds'] / row['seconds']:8.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
