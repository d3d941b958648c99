"""One training step's rollouts with many faults at once: Ray actors, simulated engines and tools.

    python -m benchmarks.swarm_faults

1 % of the tool calls fail, 5 % of all calls take 20 times as long, one of two workers is killed while it
works, and then one of three engines. Prints the outcome of every episode; exits 1 if the counters do not add
up.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import ray

from benchmarks.simulated import PROBE, Latency, SimulatedEngine, SimulatedEnvironment, fan_out, simulated_task
from envs.base import ErrorKind
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from parl.collect.collector import Collector
from parl.collect.pools import RolloutSide
from parl.config.schema import Config
from parl.machine.cluster import local_ray
from rollouts.engine.base import Place, PoolEngine

WIDTH, CALLS = 20, 100
MODEL = Latency(median_s=0.1, sigma=0.25, stragglers=0.05, factor=20.0)
TOOL = Latency(median_s=0.02, sigma=0.25, stragglers=0.05, factor=20.0, failures=0.01)
STARTER = next(Path(__file__).parents[1].glob("configs/starters/*/tokenizer.json")).parent


class Simulated(PoolEngine):
    """An engine without a model."""

    rebalance = True

    @classmethod
    def open(cls, place: Place) -> PoolEngine:
        """See ``PoolEngine``."""
        return SimulatedEngine(KimiChat(Tokenizer.load(STARTER)), fan_out(WIDTH, CALLS), MODEL)


def main() -> None:
    """Run the step and print the outcomes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=8)
    parser.add_argument("--placement", choices=("local", "spread"), default="spread")
    options = parser.parse_args()
    size = 8
    budget = {"subagents": WIDTH, "subagent_steps": 99, "turn_tokens": 4096, "total_tokens": 10**7}
    rollouts = {
        "workers": 2,
        "policy_engines": 1,
        "frozen_engines": 2,
        "placement": options.placement,
        "engine": "__main__:Simulated",
    }
    with tempfile.TemporaryDirectory() as root, local_ray():
        config = Config.model_validate({"root": root, "rollouts": {**rollouts, "budget": budget}})
        side = replace(RolloutSide.of(config), environment=SimulatedEnvironment(TOOL))
        collector = Collector(side, STARTER, {})
        collector.sync({}, 1)
        tasks = [simulated_task(number) for number in range(options.groups)]
        doomed = ["an engine"]

        def progress(done: int, total: int) -> None:
            if collector.restarts and doomed:  # all actors are new ones by now
                doomed.clear()
                ray.kill(collector._engines["frozen"][1])

        began = time.monotonic()
        threading.Timer(2.0, lambda: ray.kill(collector._workers[1])).start()
        episodes = collector.collect(tasks, group_size=size, seed=1, temperature=1.0, progress=progress)
        seconds = time.monotonic() - began
        collector.close()
    ends = Counter(str(episode.status) for episode in episodes)
    agents = Counter(str(trace.status) for episode in episodes for trace in episode.traces)
    results = [
        result
        for episode in episodes
        for trace in episode.traces
        for turn in trace.turns
        for call, result in zip(turn.calls, turn.results, strict=True)
        if call.name == PROBE.name
    ]
    failed = sum(result.error is ErrorKind.SERVER for result in results)
    print(f"{len(episodes)} episodes of {options.groups * size} in {seconds:.1f} s, {collector.restarts} restarts")
    print(f"episodes: {dict(ends)}; agents: {dict(agents)}; tool calls: {len(results)}, {failed} of them failed")
    keys = {(episode.task.key, episode.index) for episode in episodes}
    whole = len(keys) == len(episodes) == sum(ends.values()) == options.groups * size
    if not whole or agents.total() != len(episodes) * (WIDTH + 1) or "running" in agents:
        sys.exit("the counters do not add up")


if __name__ == "__main__":
    main()
