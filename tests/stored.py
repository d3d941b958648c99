"""Made-up episodes with all fields of a rollout, and a run's folder of them, without a model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from envs.base import Gold, Oracle, Role, Task, ToolCall, ToolResult
from parl.config.load import to_yaml
from parl.config.schema import Config
from rewards.score import score_episode
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.store.store import EpisodeStore

COLUMNS = ("Name", "Age")


def wide_task(number: int, width: int = 4) -> Task:
    """A table of ``width`` rows."""
    rows = tuple((f"Name{number}x{i}", str(100 * number + i)) for i in range(width))
    return Task(
        key=f"wide-{number}",
        family="wide",
        split="test",
        prompt=f"Report the age of the {width} members of group {number}.",
        gold=Gold(kind="table", columns=COLUMNS, unique_columns=("Name",), rows=rows),
        oracle=Oracle(serial_steps=2 * width + 1, parallel_steps=5, width=width),
        width=width,
    )


def chain_task(number: int) -> Task:
    """A single value for which a swarm is no faster."""
    return Task(
        key=f"chain-{number}",
        family="chain",
        split="test",
        prompt=f"Who is the uncle of {number}?",
        gold=Gold(kind="exact", answers=(f"uncle{number}",)),
        oracle=Oracle(serial_steps=5, parallel_steps=5, width=0),
    )


def make_turn(at: int, *, content: str = "", name: str = "", spawned: tuple[str, ...] = (), **arguments: Any) -> Turn:
    """Turn number ``at`` of a trace: 3 tokens read, 5 sampled; one call of ``name`` per spawned agent."""
    calls = [
        ToolCall(id=f"functions.{name}:{i}", name=name, arguments=arguments)
        for i in range(max(len(spawned), 1) if name else 0)
    ]
    results = [ToolResult(text=f"result of {name}", latency_s=0.1) for _ in calls]
    turn = Turn(start=8 * at + 3, end=8 * at + 8, content=content, calls=calls, results=results, spawned=list(spawned))
    turn.t_start, turn.t_model, turn.t_end = float(at), at + 0.5, at + 1.0
    return turn


def make_trace(agent_id: str, turns: list[Turn], **fields: Any) -> Trace:
    """A trace whose arrays fit its turns."""
    root, size = agent_id == "0", 8 * len(turns)
    mask = [i % 8 >= 3 for i in range(size)]
    return Trace(
        agent_id=agent_id,
        role=Role.ORCHESTRATOR if root else Role.SUBAGENT,
        name="orchestrator" if root else "worker",
        parent=None if root else "0",
        parent_turn=None if root else 0,
        tokens=list(range(size)),
        mask=mask,
        logprobs=[-0.5 if sampled else 0.0 for sampled in mask],
        versions=[0 if sampled else -1 for sampled in mask],
        turns=turns,
        trainable=root,
        **{"status": TraceStatus.FINISHED, **fields},
    )


def make_episode(task: Task, index: int = 0, *, spawning: bool, right: float = 1.0, seed: int = 7) -> Episode:
    """An attempt with about the share ``right`` of its rows (or of its attempts at a single value) right."""
    rng = random.Random(f"{task.key}/{index}/{seed}/{spawning}/{right}")
    wide = task.gold.kind == "table"
    answer = _table(task, right, rng) if wide else f"Answer: {task.gold.answers[0] if rng.random() < right else 'none'}"
    children: list[Trace] = []
    if spawning and wide:
        ids = tuple(f"0/{i}" for i in range(task.width))
        for i, agent_id in enumerate(ids):
            turns = [make_turn(k, name="search", query=f"row {i}") for k in range(rng.randint(1, 3))]
            status = TraceStatus.FINISHED if rng.random() < 0.9 else TraceStatus.OVER_BUDGET
            children.append(
                make_trace(agent_id, turns, status=status, message=f"found row {i}", prompt=f"find row {i}")
            )
        root = [make_turn(0, name="assign_task", spawned=ids, agent="worker", prompt="find a row")]
    else:
        root = [make_turn(k, name="search", query=f"row {k}") for k in range(2 * task.width + rng.randint(0, 2))]
    root.append(make_turn(len(root), content=answer))
    return Episode(
        task=task,
        index=index,
        seed=seed,
        traces=[make_trace("0", root, prompt=task.prompt, message=answer), *children],
        status=EpisodeStatus.ANSWERED if rng.random() < 0.95 else EpisodeStatus.OVER_BUDGET,
        answer=answer,
        critical_budget=30,
        wall_s=1.5,
    )


def make_run(config: Config, *, steps: int = 4, tasks: int = 6) -> Path:
    """The folder of a run of ``steps`` steps with baseline and evaluation, scored as by the trainer."""
    run = config.run_dir
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(to_yaml(config, marked=True))
    asked = [wide_task(i, 3 + i % 12) if i % 3 else chain_task(i) for i in range(tasks)]
    stores = {"episodes": (True, config.rewards), "single_agent/episodes": (False, config.rewards.alone())}
    for name, (spawning, rewards) in stores.items():
        for step in range(1, steps + 1):
            episodes = [make_episode(t, i, spawning=spawning, right=0.8, seed=step) for t in asked for i in range(2)]
            for episode in episodes:
                score_episode(episode, rewards, rewards.weights(step - 1, config.trainer.steps))
            EpisodeStore(run / name).write(step, episodes, policy_version=step - 1)
    policies = {"cold_start": (True, 0.5), "trained": (True, 0.9), "single_agent": (False, 0.8)}
    for label, (spawning, right) in policies.items():
        episodes = [make_episode(task, spawning=spawning, right=right) for task in asked]
        for episode in episodes:
            score_episode(episode, config.rewards, config.rewards.held_out())
        EpisodeStore(run / "eval").write(0, episodes, policy_version=0, kind=label)
    return run


def _table(task: Task, right: float, rng: random.Random) -> str:
    head = ["| " + " | ".join(COLUMNS) + " |", "|---|---|"]
    return "\n".join(head + [f"| {name} | {age if rng.random() < right else '?'} |" for name, age in task.gold.rows])
