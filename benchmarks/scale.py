"""Ten thousand episodes at once in one rollout worker's event loop, admitted by the real scheduler.

    python -m benchmarks.scale [--episodes 100 1000 10000] [--json FILE]

Engine and tools are simulated (`benchmarks/simulated.py`): a turn takes 4 s of sampling, a tool call 1 s (medians of
log-normals, 1 % take 5 times as long), and their waiting is skipped. Scheduler, agents, rendering, parsing, budgets and
transcripts are real. An episode is an orchestrator with four sub-agents of four tool calls each. Groups of eight are
admitted with a staleness of 1, 2 N episodes at once, of which N run (`rollouts.concurrency`) and the others wait; three
steps of N episodes are taken.

For each N, in a process of its own: episodes ended; the mean number in flight, of an ideal coordinator; the seconds of
three steps with the coordinator's CPU time counted, and without it, which is an ideal coordinator on the same draws;
their quotient, the overhead; CPU milliseconds a turn, and the scheduler's part of them; the process's peak memory above
a process that has imported everything, in all and an episode in flight.

Then the scheduler alone with 100,000 episodes in flight and as many that wait, measured, and from the largest N what
100,000 would take, by arithmetic: nothing of that size was run. Turns a second are the episodes in flight times an
episode's turns, divided by its mean duration.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.simulated import Latency, SimulatedEngine, SimulatedEnvironment, SkippingLoop, fan_out, run_on
from benchmarks.simulated import simulated_task as task_of
from benchmarks.swarm import BUDGET, tokenizer
from model.chat.kimi import KimiChat
from rollouts.engine.base import Completion
from rollouts.episode import Episode
from rollouts.scheduler import End, Scheduler
from rollouts.swarm.limits import Slots
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode
from rollouts.worker import GC_THRESHOLDS

GROUP, STALENESS, STEPS = 8, 1, 3
WIDTH, CALLS = 4, 16
MODEL = Latency(median_s=4.0, sigma=0.5, stragglers=0.01, factor=5.0)
TOOL = Latency(median_s=1.0, sigma=0.5, stragglers=0.01, factor=5.0)
PAPER = 100_000
_LONG = BUDGET.model_copy(update={"episode_s": 3600.0, "call_s": 600.0})


@dataclass(frozen=True, kw_only=True)
class Row:
    """One N, measured."""

    in_flight: int  # at most
    mean_in_flight: float
    episode_s: float  # mean duration of those that ended; both without the coordinator's time
    episode_turns: float
    ended: int
    steps_s: float
    ideal_s: float
    turns: int  # begun, also of episodes that had not ended
    cpu_s: float
    scheduler_s: float
    peak_bytes: int


class Counted(SimulatedEngine):
    """Counts the turns that it was asked for, also of episodes that are then cut."""

    turns = 0

    async def generate(self, *given: Any, **settings: Any) -> Completion:
        """As of the simulated one."""
        self.turns += 1
        return await super().generate(*given, **settings)


class Timed:
    """The scheduler, with the CPU seconds that it takes."""

    def __init__(self, episodes: int) -> None:
        batch = episodes // GROUP  # so many more wait that N are always in flight
        steps = STEPS + STALENESS + 1  # the run goes on: groups are admitted to the end
        self.own = Scheduler(batch=batch, group_size=GROUP, staleness=STALENESS, steps=steps)
        self.seconds, self.calls = 0.0, 0

    def call(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """What ``act`` returns."""
        began = time.process_time()
        result = act(*arguments)
        self.seconds += time.process_time() - began
        self.calls += 1
        return result


@dataclass(slots=True, kw_only=True)
class Played:
    """Three steps. ``busy_s``: of all episodes in flight, summed; ``turns`` and ``lasted_s``: of those that ended."""

    ended: int = 0
    turns: int = 0
    seconds: float = 0.0
    busy_s: float = 0.0
    lasted_s: float = 0.0
    peak_bytes: int = 0


async def play(timed: Timed, settings: SwarmSettings, tools: SimulatedEnvironment, most: int) -> Played:
    """Three steps, with at most so many episodes in flight."""
    scheduler, changed, now = timed.own, asyncio.Event(), asyncio.get_running_loop().time
    slots = asyncio.Semaphore(most)  # as the rollout worker's
    running: set[asyncio.Task[None]] = set()
    out = Played()

    async def one(number: int, index: int) -> Episode:
        async with slots:
            start = now()
            try:
                episode = await run_episode(
                    task_of(number), tools, settings, index=index, seed=0, critical_budget=0
                )  # fmt: skip
            finally:
                out.busy_s += now() - start
        assert not episode.void and episode.answer == "done", episode.error
        out.ended, out.lasted_s = out.ended + 1, out.lasted_s + now() - start
        out.turns += sum(trace.steps for trace in episode.traces)
        return episode

    async def group(number: int) -> None:
        await asyncio.gather(*(one(number, index) for index in range(GROUP)))
        timed.call(scheduler.end, number, [End.ACCEPTED] * GROUP)
        changed.set()

    began = now()
    for _ in range(STEPS):
        for number in timed.call(scheduler.admit):
            running.add(asyncio.create_task(group(number)))
        while timed.call(scheduler.take) is None:
            await changed.wait()
            changed.clear()
        scheduler.advance()
        running = {task for task in running if not task.done()}
    out.seconds, out.peak_bytes = now() - began, peak()
    counted, out = out, Played()  # what is cut now is in flight, but has not ended
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    counted.busy_s += out.busy_s
    return counted


def once(episodes: int, *, cpu: bool) -> tuple[Timed, Played, int, float]:
    """(scheduler, three steps, all turns begun, CPU seconds); ``cpu``: computing takes time."""
    chat, timed, tools = KimiChat(tokenizer()), Timed(episodes), SimulatedEnvironment(TOOL)
    engine = Counted(chat, fan_out(WIDTH, CALLS), MODEL)
    settings = SwarmSettings(chat=chat, pool=lambda trace: engine, budget=_LONG, slots=Slots(None))
    gc.collect()
    began = time.process_time()
    played = run_on(partial(SkippingLoop, cpu=cpu), play(timed, settings, tools, episodes))
    return timed, played, engine.turns, time.process_time() - began


def measure(episodes: int) -> Row:
    """One N, in this process."""
    gc.set_threshold(*GC_THRESHOLDS)
    once(16, cpu=True)  # what is loaded and cached once belongs to nobody
    before = peak()
    timed, played, turns, spent = once(episodes, cpu=True)
    _, ideal, _, _ = once(episodes, cpu=False)
    return Row(
        in_flight=episodes, mean_in_flight=ideal.busy_s / ideal.seconds, episode_s=ideal.lasted_s / ideal.ended,
        episode_turns=ideal.turns / ideal.ended, ended=played.ended, turns=turns, steps_s=played.seconds,
        ideal_s=ideal.seconds, cpu_s=spent,
        scheduler_s=timed.seconds, peak_bytes=played.peak_bytes - before,
    )  # fmt: skip


def peak() -> int:
    """The largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def scheduler_alone(episodes: int) -> tuple[float, int]:
    """(CPU seconds a step, groups) of the scheduler with so many in flight, asked for a step after each group's end."""
    timed = Timed(episodes)
    scheduler = timed.own
    for _ in range(STEPS):
        timed.call(scheduler.admit)
        taken = None
        for number in [number for number, group in scheduler.groups.items() if not group.ended]:
            timed.call(scheduler.end, number, [End.ACCEPTED] * GROUP)
            if (taken := timed.call(scheduler.take)) is not None:
                break
        assert taken is not None
        scheduler.advance()
    return timed.seconds / STEPS, scheduler.batch


def show(row: Row) -> str:
    """One line of the table."""
    return (
        f"| {row.in_flight:,} | {row.mean_in_flight:,.0f} | {row.episode_s:.0f} | {row.ended:,} | {row.turns:,} |"
        f" {row.steps_s:.0f} | {row.ideal_s:.0f} |"
        f" {row.steps_s / row.ideal_s:.3f} | {row.cpu_s / row.turns * 1e3:.3f} |"
        f" {row.scheduler_s / row.turns * 1e3:.3f} | {row.peak_bytes / 2**20:,.0f} |"
        f" {row.peak_bytes / row.in_flight / 1024:.0f} |"
    )


def rate_of(row: Row, in_flight: int) -> float:
    """Turns a second of so many episodes in flight, by Little's law."""
    return in_flight * row.episode_turns / row.episode_s


def main() -> None:
    """Print the table; with ``--json`` write its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[96, 992, 10_000], help="multiples of 16")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(measure(options.one))))
        return
    print("| in flight, at most | on average | an episode, s | ended |"
          " turns | three steps, s | ideal, s | overhead | CPU ms a turn | of it scheduler |"
          " peak MiB | KiB an episode |\n|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    rows = []
    for episodes in options.episodes:
        command = [sys.executable, "-m", "benchmarks.scale", "--one", str(episodes)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=3600)
        rows.append(Row(**json.loads(done.stdout)))
        print(show(rows[-1]), flush=True)
    last = rows[-1]
    seconds, groups = scheduler_alone(PAPER)
    print(f"\nthe scheduler alone, {PAPER:,} in flight: {seconds:.2f} CPU s a step of {groups:,} groups (measured)")
    rate = rate_of(last, PAPER)
    cores = rate * (last.cpu_s - last.scheduler_s) / last.turns
    memory = last.peak_bytes / last.in_flight * PAPER
    print(f"{PAPER:,} in flight, by arithmetic: {rate:,.0f} turns a second, {cores:.1f} cores in workers,"
          f" {memory / 2**30:.1f} GiB in all workers together")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
