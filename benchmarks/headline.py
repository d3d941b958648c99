"""README's first table as data, from a finished sweep and a scripted policy: ``docs/data/headline.json``.

    parl sweep configs/sweeps/headline.yaml
    python benchmarks/headline.py configs/sweeps/headline.yaml                # writes docs/data/headline.json
    python benchmarks/headline.py configs/sweeps/headline.yaml --freeze      # once: fixes the test's tasks

The sweep has arms called as ``ARMS`` are. ``scripted`` is the best of three scripted plans for each task, without a
model: serial calls, parallel calls by one agent, or sub-agents; best is what solves the task, then the lowest cost in
the unit of ``rewards.critical``. The limits are those of the sweep's first cell, and a plan in which an agent reads
more than the policy has positions counts as unsolved; so does an unsolved task. Shares are 0 to 1, ``makespan_s``
seconds under ``rewards.latency``, costs means over tasks and runs.
``success_low`` and ``success_high``: 95 % interval over cold starts and tasks (``parl.sweep.results.crossed``); for
``scripted`` over tasks. A column that the episodes do not have is null.

The test is frozen: its tasks' keys and the settings of their world are in ``docs/data/frozen_test.json``, and a sweep
over any others is refused: other settings can make easier pages for the same questions.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from envs.base import Environment, Role, Task
from envs.world.reference import ReferencePolicy, Style, subagent_act
from model.files import write_text
from parl.collect.tasks import run_tasks
from parl.config.family import chat_format
from parl.config.mistakes import leaves
from parl.errors import UserError
from parl.evaluate.scoring import Scoring
from parl.sweep.cells import Cell, cells, folder_of, trials
from parl.sweep.file import Arm, read_sweep
from parl.sweep.results.aggregate import Done, aggregate, load_done, task_keys
from parl.sweep.results.measure import Record
from parl.sweep.run import choices
from parl.sweep.state import Folder, Outcome
from rewards.parl_reward import cost_of
from rollouts.engine.scripted import ScriptedEngine
from rollouts.episode import Episode, Trace
from rollouts.swarm.budget import critical_budget
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

ARMS = ("swarm", "serial_agent", "parallel_agent", "cold_start", "cold_start_no_spawn")
SCRIPTED = "scripted"
STYLES: tuple[Style, ...] = ("direct", "parallel", "serial")
MEANS = (
    *("item_f1", "critical_steps", "path_tokens", "makespan_s", "total_tokens"),
    *("spawn_rate", "direct_parallel_rate"),
)
DATA = Path(__file__).resolve().parents[1] / "docs" / "data"


def tasks_hash(keys: Sequence[str]) -> str:
    """SHA-256 over the tasks' keys, sorted, one a line."""
    return hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()


def frozen(cell: Cell, tasks: Sequence[Task]) -> dict[str, Any]:
    """What is kept of a frozen test: its hash, the settings that make it, and each task's family."""
    config = cell.config
    settings = dict(leaves(config.envs.model_dump(mode="json"), "envs."))
    settings |= {f"eval.{name}": getattr(config.eval, name) for name in ("split", "seed", "tasks")}
    return {
        "hash": tasks_hash([task.key for task in tasks]),
        "settings": settings,
        "tasks": {task.key: task.family for task in sorted(tasks, key=lambda task: task.key)},
    }


def check_frozen(file: Path, now: Mapping[str, Any]) -> None:
    """UserError that says what changed, unless ``file`` holds the same tasks and settings as ``now``."""
    if not file.is_file():
        raise UserError(f"{file} is missing: no test is frozen yet; --freeze writes it, once")
    kept = json.loads(file.read_text(encoding="utf-8"))
    before, after = kept["settings"], json.loads(json.dumps(now["settings"]))
    said = [
        f"{key} was {json.dumps(before.get(key))} and is {json.dumps(after.get(key))}"
        for key in before | after
        if before.get(key) != after.get(key)
    ]
    if kept["hash"] == now["hash"] and not said:
        return
    gone = Counter(family for key, family in kept["tasks"].items() if key not in now["tasks"])
    new = Counter(family for key, family in now["tasks"].items() if key not in kept["tasks"])
    counts = [
        f"{word}: {', '.join(f'{count} {family}' for family, count in sorted(counter.items()))}"
        for word, counter in (("tasks gone", gone), ("tasks new", new))
        if counter
    ]
    why = said or ["no setting differs, so the code makes other tasks"]
    raise UserError(f"the test is not the frozen one of {file}: {'; '.join([*why, *counts])}")


class Shortest(ReferencePolicy):
    """A script without the turns that only demonstrate something."""

    def creates_first(self, task: Task) -> bool:
        """Sub-agents are created and asked in one turn."""
        return False


def scripted(cell: Cell, environment: Environment, tasks: Sequence[Task], chat: Any) -> dict[str, Episode]:
    """By task, the episode of the best scripted plan: solved before unsolved, then the lowest cost."""
    config = cell.config
    budget, positions = config.rollouts.budget, config.model.max_position_embeddings
    scoring = Scoring(reward=config.rewards, steps=config.trainer.steps)

    async def played() -> list[Episode]:
        episodes = []
        for task in tasks:
            for style in STYLES:
                policy = Shortest(style)

                def pool(trace: Trace, task: Task = task, policy: Shortest = policy) -> ScriptedEngine:
                    if trace.role is Role.ORCHESTRATOR:
                        return ScriptedEngine(trace, chat, lambda history: policy.act(task, history))
                    return ScriptedEngine(trace, chat, lambda history: subagent_act(trace.prompt, history))

                settings = SwarmSettings.of(config.rollouts, chat=chat, pool=pool, spawning=style == "parallel")
                most = critical_budget(task, budget)
                episodes.append(await run_episode(task, environment, settings, index=0, seed=0, critical_budget=most))
        await environment.close()
        return episodes

    def worth(episode: Episode) -> tuple[float, float]:
        return episode.metrics["success"], -cost_of(episode, config.rewards.critical, config.rewards.latency)

    best: dict[str, Episode] = {}
    for episode in asyncio.run(played()):
        scoring.score_held_out(episode)
        if max(len(trace.tokens) for trace in episode.traces) > positions:
            episode.metrics |= {"success": 0.0, "item_f1": 0.0}
        key = episode.task.key
        if key not in best or worth(episode) > worth(best[key]):
            best[key] = episode
    return best


def as_done(cell: Cell, episodes: Mapping[str, Episode]) -> Done:
    """Scripted episodes as one run's."""
    records = {
        key: Record(
            family=episode.task.family,
            width=episode.task.width,
            values={name: float(value) for name, value in episode.metrics.items() if isinstance(value, int | float)},
        )
        for key, episode in episodes.items()
    }
    own = replace(cell, id=SCRIPTED, arm=SCRIPTED, at={}, policy=SCRIPTED)
    return Done(cell=own, outcome=Outcome(key=SCRIPTED, wall_s=0.0, cold=SCRIPTED), records=records)


def row(found: Mapping[str, Any]) -> dict[str, Any]:
    """A row of ``results.json`` as one of the headline."""
    success = found["success"]
    return {
        "policy": found["arm"],
        "group": found["group"],
        "tasks": found["tasks"],
        "success": success["value"],
        "success_low": success["low"],
        "success_high": success["high"],
    } | {name: found[name] and found[name]["value"] for name in MEANS}


def main() -> None:
    """Check, play, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path)
    parser.add_argument("--freeze", action="store_true", help="fix the test's tasks, and stop")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of headline.json and frozen_test.json")
    options = parser.parse_args()
    try:
        headline(options.sweep, options.data, freeze=options.freeze)
    except UserError as error:
        sys.exit(f"error: {error}")


def headline(file: Path, data: Path, *, freeze: bool = False) -> None:
    """Write ``headline.json`` to ``data`` for the sweep in ``file``; or ``freeze`` its test."""
    sweep = read_sweep(file)
    if lacking := [arm for arm in ARMS if arm not in sweep.arms]:
        raise UserError(f"{file} has no arm {', '.join(lacking)}: the headline needs {', '.join(ARMS)}")
    folder = Folder(folder_of(sweep))
    every = [cell for cell in cells(sweep, choices(sweep, folder, trials(sweep))) if cell.arm in ARMS]
    first = every[0]
    own = run_tasks(first.config)
    tasks = own.held_out()
    now, kept = frozen(first, tasks), data / "frozen_test.json"
    if freeze:
        if kept.is_file():
            raise UserError(f"{kept} is there: a test is frozen once; delete it if its numbers were never shown")
        print(f"froze {len(tasks)} tasks: {write_text(kept, json.dumps(now, indent=1) + chr(10))}")
        return
    check_frozen(kept, now)
    finished = [(cell, outcome) for cell in every if (outcome := folder.outcome(cell))]
    if missing := [cell.id for cell in every if not folder.outcome(cell)]:
        raise UserError(f"not done: {', '.join(missing)}; run parl sweep {file}")
    done = load_done(finished)
    if task_keys(done) != set(now["tasks"]):
        raise UserError("the cells were evaluated on other tasks than the frozen test's: run the sweep again")
    chat = chat_format(first.config.model, first.config.rollouts, own.context.tokenizer)
    done.append(as_done(first, scripted(first, own.environment, tasks, chat)))
    arms = {**{name: sweep.arms[name] for name in ARMS}, SCRIPTED: Arm(policy="cold_start")}
    found = aggregate(sweep.model_copy(update={"arms": arms, "reference": "swarm"}), done, cells=len(done))
    result = {
        "test_hash": now["hash"],
        "cold_starts": len({cell.cold for cell in every}),
        "rows": [row(one) for one in found["rows"]],
    }
    print(f"{len(result['rows'])} rows: {write_text(data / 'headline.json', json.dumps(result, indent=1) + chr(10))}")


if __name__ == "__main__":
    main()
