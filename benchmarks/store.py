"""Seconds to write and to read the episodes of a training step: 96 episodes of ten traces, with routes.

python benchmarks/store.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np

from envs.base import Gold, Role, Task
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus
from rollouts.store.store import EpisodeStore

RUNS = 5


def trace(agent_id: str, tokens: int, routed: bool, seed: int) -> Trace:
    rng = np.random.default_rng((seed, tokens))
    mask = rng.random(tokens) < 0.5
    return Trace(
        agent_id=agent_id,
        role=Role.SUBAGENT if "/" in agent_id else Role.ORCHESTRATOR,
        name="finder",
        parent="0" if "/" in agent_id else None,
        parent_turn=0 if "/" in agent_id else None,
        prompt="find it",
        status=TraceStatus.FINISHED,
        message="found",
        tokens=rng.integers(0, 160_000, tokens).tolist(),
        mask=mask.tolist(),
        logprobs=np.where(mask, -rng.exponential(size=tokens), 0).astype(np.float32).tolist(),
        versions=np.where(mask, 3, -1).tolist(),
        routes=rng.integers(0, 384, (tokens, 3, 2)).astype(np.int16) if routed else None,
        turns=[],
        trainable="/" not in agent_id,
    )


def seconds(action: Callable[[], object]) -> float:
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    task = Task(key="t", family="wide", split="train", prompt="list them", gold=Gold(kind="exact"))
    episodes = []
    for i in range(96):
        traces = [trace("0", 800, True, i)] + [trace(f"0/{k}", 300 + k, False, i) for k in range(9)]
        episodes.append(Episode(task=task, index=i, seed=i, traces=traces, status=EpisodeStatus.ANSWERED, answer="x"))
    with tempfile.TemporaryDirectory() as folder:
        store = EpisodeStore(folder)
        wrote = seconds(lambda: store.write(0, episodes, policy_version=0))
        read = seconds(lambda: store.read(0))
        size = store.path(0).stat().st_size
    print(f"96 episodes, 960 traces, {size / 2**20:.1f} MiB: write {wrote:.2f} s, read {read:.2f} s (median of {RUNS})")


if __name__ == "__main__":
    main()
