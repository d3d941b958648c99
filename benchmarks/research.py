"""The research environment's baselines: scripted policies, and what a policy knows with the book closed.

    parl env build factbook
    python benchmarks/research.py scripted [--corpus FOLDER] [--split val] [--limit N]
    python benchmarks/research.py closed CONFIG [KEY=VALUE]... [--limit N] [--policy cold_start]

``scripted`` plays three policies through the swarm's code and the corpus's tools: one agent with one call a turn
(``serial``), one with all independent calls in one turn (``direct``), and a sub-agent for each row where that pays
(``parallel``). Beside their critical steps stand the oracle's.

``closed`` asks the weights of ``model.init``, untrained and without any tool, the same questions, and with ``--policy``
also a policy of the run, with tools. ``net`` is its score minus the closed book's, task by task: what the tools added.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.base import Role, Task
from envs.research.environment import ResearchConfig, ResearchEnvironment
from envs.research.factbook.reference import ReferencePolicy, Style, subagent_act
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer, load_tokenizer
from parl.config.load import load_config
from parl.evaluate.evaluation import run_eval
from parl.evaluate.statistics import Bootstrap
from rewards.score import measure
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import Episode, Trace
from rollouts.store.outline import read_outlines, shard_paths
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

ROOT = Path(__file__).resolve().parents[1]
STYLES: tuple[Style, ...] = ("serial", "direct", "parallel")
_ORACLE = {"serial": "serial_steps", "direct": "direct_steps", "parallel": "parallel_steps"}
_CLOSED = ["envs.config.closed_book=true", "sft.data=null", "sft.enough=null", "rollouts.swarm=false", "baseline=false"]
_ROOMY = BudgetConfig(direct_calls=1000, turn_tokens=10**6, total_tokens=10**9, orchestrator_steps=200, subagents=64)


async def played(environment: ResearchEnvironment, tokenizer: Tokenizer, task: Task, style: Style) -> Episode:
    """One episode of a scripted policy."""
    policy, chat = ReferencePolicy(style), KimiChat(tokenizer)

    def pool(trace: Trace) -> ScriptedEngine:
        if trace.role is Role.ORCHESTRATOR:
            return ScriptedEngine(trace, chat, lambda history: policy.act(task, history))
        return ScriptedEngine(trace, chat, lambda history: subagent_act(trace.prompt, history))

    settings = SwarmSettings(chat=chat, pool=pool, budget=_ROOMY, spawning=style == "parallel")
    return await run_episode(task, environment, settings, index=0, seed=0, critical_budget=0)


def scripted(corpus: Path, split: str, limit: int | None) -> dict[str, Any]:
    """Play all styles and print the table."""
    environment = ResearchEnvironment(ResearchConfig(corpus=corpus))
    tokenizer = load_tokenizer(next((ROOT / "configs/starters").iterdir()))
    tasks = environment.tasks(split)[:limit]

    async def all_of(style: Style) -> list[Episode]:
        return [await played(environment, tokenizer, task, style) for task in tasks]

    found: dict[str, Any] = {}
    print("| family | tasks | policy | score | success | critical steps | oracle | total steps |\n|" + "---|" * 8)
    for style in STYLES:
        rows = [(episode.task, measure(episode), episode.metrics) for episode in asyncio.run(all_of(style))]
        for family in ("all", *dict.fromkeys(task.family for task in tasks)):
            own = [row for row in rows if family in ("all", row[0].family)]
            oracle = [getattr(task.oracle, _ORACLE[style]) for task, _, _ in own]
            values = {
                "score": _mean([score.value for _, score, _ in own if score]),
                "success": _mean([metrics["success"] for _, _, metrics in own]),
                "critical_steps": _mean([metrics["critical_steps"] for _, _, metrics in own]),
                "oracle": _mean(oracle),
                "total_steps": _mean([metrics["total_steps"] for _, _, metrics in own]),
            }
            found[f"{family}/{style}"] = values
            cells = [f"{values['score']:.3f}", f"{values['success']:.3f}"]
            cells += [f"{values[name]:.1f}" for name in ("critical_steps", "oracle", "total_steps")]
            print(f"| {family} | {len(own)} | {style} | {' | '.join(cells)} |")
    return found


def scores(config: Path, overrides: Sequence[str], policy: str, limit: int | None) -> dict[str, tuple[str, float]]:
    """Family and score by task of a policy of ``config``; what is stored already is not run again."""
    resolved = load_config(config, list(overrides))
    result = run_eval(resolved, policies=[policy], limit=limit)
    outlines = read_outlines(shard_paths(Path(result["policies"][policy]["store"]), policy), texts=True)
    episodes = [outline.episode for outline in outlines]
    return {e.task.key: (e.task.family, score.value) for e in episodes if (score := measure(e))}


def closed(config: Path, overrides: Sequence[str], policy: str | None, limit: int | None) -> dict[str, Any]:
    """The closed book's scores by family, and a policy's minus these."""
    name = f"name={load_config(config, list(overrides)).name}-closed"
    without = scores(config, [*overrides, *_CLOSED, name], "cold_start", limit)
    with_tools = scores(config, overrides, policy, limit) if policy else {}
    found: dict[str, Any] = {}
    print(f"| family | tasks | closed book | {policy or '-'} | net |\n|---|---|---|---|---|")
    for family in ("all", *dict.fromkeys(family for family, _ in without.values())):
        keys = [key for key, (own, _) in without.items() if family in ("all", own)]
        boot = Bootstrap(len(keys))
        book = [without[key][1] for key in keys]
        cells = [_interval(boot.mean(book, bounds=(0, 1)))]
        if policy:
            tools = [with_tools[key][1] for key in keys]
            cells += [
                _interval(boot.mean(tools, bounds=(0, 1))),
                _interval(boot.difference(book, tools, bounds=(0, 1))),
            ]
        else:
            cells += ["-", "-"]
        found[family] = cells
        print(f"| {family} | {len(keys)} | {' | '.join(cells)} |")
    return found


def _interval(interval: Any) -> str:
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Print the table, and write it to ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=("scripted", "closed"))
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs/factbook.yaml")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--corpus", type=Path, default=Path("corpora/factbook"))
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--policy")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.mode == "scripted":
        found = scripted(given.corpus, given.split, given.limit)
    else:
        found = closed(given.config, given.overrides, given.policy, given.limit)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
