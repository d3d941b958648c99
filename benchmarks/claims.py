"""README's claims about a finished run, and checks of them, from its episodes, with intervals.

    python benchmarks/claims.py configs/quickstart.yaml [KEY=VALUE]...   # after `make quickstart`; about two minutes

Policies: the cold start; the same without spawning tools (``cold_start_no_spawn``); the single agent, which may call in
parallel, trained as long as the swarm; the trained swarm; and, without any model and with a context without bound, one
agent that calls in parallel (``scripted calls``), and sub-agents for every table (``scripted swarm``).

``path tokens`` are the sampled tokens on the longest path, ``seconds`` the makespan under ``rewards.latency``
(``rollouts.costs``). ``success`` is a whole answer, every cell right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.base import Environment, Role, Task
from envs.world.reference import ReferencePolicy, Style, subagent_act
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from parl.collect.tasks import run_tasks
from parl.config.load import load_config
from parl.evaluate.evaluation import run_eval
from parl.evaluate.scoring import Scoring
from parl.evaluate.statistics import Bootstrap, Interval
from rollouts.config import BudgetConfig
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import Episode, Trace
from rollouts.store.outline import read_outlines, shard_paths
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

TRAINED = ("cold_start", "cold_start_no_spawn", "single_agent", "trained")
GROUPS: dict[str, Callable[[Task], bool]] = {
    "all": lambda task: True,
    "wide": lambda task: task.family == "wide",
    "list": lambda task: task.family == "list",
    "deep": lambda task: task.family == "deep",
    "deep, 8 rows and more": lambda task: task.family == "deep" and task.width >= 8,
    "long": lambda task: task.family == "long",
    "two phases": lambda task: task.family == "two_phase",
    "nothing to split (chain, linked list, one fact)": lambda task: task.family in _WHOLE,
}
_WHOLE = ("chain", "swap", "trail", "single_fact")
SCRIPTED: dict[str, Style] = {"scripted calls": "direct", "scripted swarm": "parallel"}
_ROOMY = BudgetConfig(direct_calls=1000, turn_tokens=10**6, total_tokens=10**9, orchestrator_steps=200)


async def scripted(environment: Environment, tokenizer: Tokenizer, tasks: list[Task], style: Style) -> list[Episode]:
    """A scripted policy, through the same swarm code and tools; nothing bounds its context."""
    policy, chat = ReferencePolicy(style), KimiChat(tokenizer)
    episodes = []
    for task in tasks:

        def pool(trace: Trace, task: Task = task) -> ScriptedEngine:
            if trace.role is Role.SUBAGENT:
                return ScriptedEngine(trace, chat, lambda history: subagent_act(trace.prompt, history))
            return ScriptedEngine(trace, chat, lambda history: policy.act(task, history))

        settings = SwarmSettings(chat=chat, pool=pool, budget=_ROOMY, spawning=style == "parallel")
        episodes.append(await run_episode(task, environment, settings, index=0, seed=0, critical_budget=0))
    await environment.close()
    return episodes


def rows_of(episodes: dict[str, Episode]) -> dict[str, dict[str, float]]:
    """The numbers of each task's episode, by the task's key."""
    return {
        key: {
            "success": float(episode.metrics["success"]),
            "item_f1": episode.metrics["item_f1"],
            "critical_steps": episode.metrics["critical_steps"],
            "path_tokens": episode.metrics["path_tokens"],
            "makespan_s": episode.metrics["makespan_s"],
            "tokens": episode.metrics["total_tokens"],
            "spawned": float(episode.metrics["spawned"]),
            "in_parallel": float(episode.metrics["direct_parallel"]),
        }
        for key, episode in episodes.items()
    }


def shown(interval: Interval, digits: int) -> str:
    """``0.84 [0.78, 0.89]``."""
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def main() -> None:
    """Evaluate what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--policy", action="append", choices=TRAINED, help="only these; may be repeated")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    config = load_config(options.config, options.overrides)
    own = run_tasks(config)
    tasks = own.held_out()
    labels = options.policy or TRAINED
    result = run_eval(config, policies=labels)
    scoring = Scoring(reward=config.rewards, steps=config.trainer.steps)
    numbers = {}
    for label in labels:
        outlines = read_outlines(shard_paths(Path(result["policies"][label]["store"]), label), texts=False)
        episodes = {outline.episode.task.key: outline.episode for outline in outlines}
        for episode in episodes.values():
            scoring.score_held_out(episode)
        numbers[label] = rows_of(episodes)
    for label, style in SCRIPTED.items():
        played = asyncio.run(scripted(own.environment, own.context.tokenizer, tasks, style))
        for episode in played:
            scoring.score_held_out(episode)
        numbers[label] = rows_of({episode.task.key: episode for episode in played})
    found = report(tasks, numbers)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def report(tasks: list[Task], numbers: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict]:
    """Print the tables: means, then the trained swarm's differences; returns the former."""
    found: dict[str, dict] = {}
    for group, belongs in GROUPS.items():
        keys = [task.key for task in tasks if belongs(task)]
        boot = Bootstrap(len(keys))
        print(f"\n### {group} ({len(keys)})\n")
        columns = ("policy", "success", "item-F1", "critical steps", "path tokens", "seconds", "all tokens")
        print(f"| {' | '.join((*columns, 'spawn rate', 'calls in parallel'))} |")
        print("|---|---|---|---|---|---|---|---|---|")
        for label, rows in numbers.items():
            of = {name: [rows[key][name] for key in keys] for name in next(iter(rows.values()))}
            cells = [shown(boot.mean(of[name], bounds=(0, 1)), 3) for name in ("success", "item_f1")]
            cells += [f"{boot.mean(of[n]).value:.{d}f}" for n, d in _DIGITS.items()]
            print(f"| {label} | " + " | ".join(cells) + " |")
            found.setdefault(group, {})[label] = {name: sum(values) / len(values) for name, values in of.items()}
        for label in (label for label in numbers if label != "trained"):
            both = (label, "trained")
            pair = {n: tuple([numbers[p][k][n] for k in keys] for p in both) for n in ("success", *_DIGITS)}
            gain = boot.difference(*pair["success"], bounds=(0, 1))
            print(f"\ntrained - {label}: success {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]", end="")
            for name in ("critical_steps", "path_tokens", "makespan_s", "tokens"):
                ratio = boot.ratio(*pair[name])
                if ratio:
                    print(f"; {name.replace('_', ' ')} {label} / trained {shown(ratio, 2)}", end="")
        print()
    return found


_DIGITS = {"critical_steps": 1, "path_tokens": 0, "makespan_s": 1, "tokens": 0, "spawned": 2, "in_parallel": 2}

if __name__ == "__main__":
    main()
