"""The cost of coordination: makespan divided by an ideal coordinator's, for swarms of any width.

    python -m benchmarks.swarm                      # all rows, on the wall clock: needs an otherwise idle machine
    python -m benchmarks.swarm --quick --json rows.json
    python -m benchmarks.swarm --clock cpu          # the same as on an idle core, on a busy machine

Engine and tools are simulated: each call sleeps for a time drawn from a log-normal with tails (rendering,
parsing, budgets and transcripts are real). ``critical_path_s`` comes from the drawn times: the critical path,
or under a cap the list schedule of ``rollouts.critical_path.makespan``; ``overhead`` is ``makespan_s``
divided by it. A tool call takes 20 ms, a model call 20 ms, or 250 ms with 1,000 agents. ``events_per_s``
counts model and tool calls, ``bytes_per_agent`` is the peak of Python's allocations without the token lists,
over all agents. Each row is the median of ``--repeats`` runs by overhead.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import selectors
import sys
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.simulated import (
    PROBE,
    Latency,
    SimulatedEngine,
    SimulatedEnvironment,
    SkippingLoop,
    fan_out,
    run_on,
    simulated_task,
)
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from rollouts.config import BudgetConfig
from rollouts.critical_path import makespan
from rollouts.episode import Episode, Trace
from rollouts.noise import noise_key
from rollouts.swarm.limits import Slots
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode
from rollouts.worker import GC_THRESHOLDS

UNLIMITED = 10**9
TOOL = Latency(median_s=0.02, sigma=0.25, stragglers=0.01, factor=5.0)
MODEL = Latency(median_s=0.02, sigma=0.25, stragglers=0.01, factor=5.0)
SLOW_MODEL = replace(MODEL, median_s=0.25)
BUDGET = BudgetConfig(
    subagents=UNLIMITED,
    subagent_steps=UNLIMITED,
    orchestrator_steps=UNLIMITED,
    turn_tokens=UNLIMITED,
    total_tokens=UNLIMITED,
    episode_s=600.0,
    call_s=60.0,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row to measure: ``episodes`` of ``width`` sub-agents with ``calls`` tool calls each, at once."""

    width: int
    calls: int
    cap: int | None = None
    model: Latency = MODEL
    tool: Latency = TOOL
    episodes: int = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured row, as ``--json`` writes it."""

    width: int
    calls: int
    cap: int | None
    makespan_s: float
    critical_path_s: float
    overhead: float
    events_per_s: float
    bytes_per_agent: float
    states: dict[str, int]


QUICK = (
    Case(width=1, calls=15),
    Case(width=100, calls=1500),
    Case(width=100, calls=1500, cap=16),
    Case(width=300, calls=4000),
    Case(width=300, calls=4000, cap=64),
)
FULL = (
    *QUICK[:1],
    Case(width=10, calls=150),
    *QUICK[1:],
    Case(width=1000, calls=4000, model=SLOW_MODEL),
    Case(width=1000, calls=4000, cap=256, model=SLOW_MODEL),
    Case(width=1, calls=4, episodes=1000, model=SLOW_MODEL),
)


def tokenizer() -> Tokenizer:
    """The vocabulary of the shipped starter."""
    return Tokenizer.load(next(Path(__file__).parents[1].glob("configs/starters/*/tokenizer.json")))


async def play(case: Case, words: Tokenizer, seed: int) -> tuple[list[Episode], float]:
    """The episodes of ``case``, all at once, and the seconds until the last was done."""
    environment = SimulatedEnvironment(case.tool, seed)
    engine = SimulatedEngine(KimiChat(words), fan_out(case.width, case.calls), case.model)
    settings = SwarmSettings(chat=KimiChat(words), pool=lambda trace: engine, budget=BUDGET, slots=Slots(case.cap))
    began = asyncio.get_running_loop().time()
    episodes = await asyncio.gather(
        *(
            run_episode(simulated_task(number), environment, settings, index=0, seed=seed, critical_budget=0)
            for number in range(case.episodes)
        )
    )
    return episodes, asyncio.get_running_loop().time() - began


def ideal(case: Case, episode: Episode, seed: int) -> Episode:
    """``episode`` with the drawn times in place of the measured ones."""
    environment = SimulatedEnvironment(case.tool, seed)

    def drawn(trace: Trace) -> Trace:
        key = noise_key(episode.seed, episode.task.key, episode.index, trace.agent_id)
        turns = []
        for number, turn in enumerate(trace.turns):
            model, _ = case.model.draw(key, number)
            own = [call for call in turn.calls if call.name == PROBE.name]
            tools = max((environment.tool_draw(episode.task, trace.agent_id, call)[0] for call in own), default=0.0)
            turns.append(replace(turn, t_start=0.0, t_model=model, t_end=model + tools))
        return replace(trace, turns=turns)

    return replace(episode, traces=[drawn(trace) for trace in episode.traces])


def measure(case: Case, words: Tokenizer, loop: Any, seed: int) -> Row:
    """One run of ``case``."""
    gc.collect()
    episodes, seconds = run_on(loop, play(case, words, seed))
    ideals = [makespan(ideal(case, episode, seed), case.cap) for episode in episodes]
    path = max(ideals)
    events = sum(trace.steps + trace.tool_calls for episode in episodes for trace in episode.traces)
    return Row(
        width=case.width,
        calls=sum(
            call.name == PROBE.name for e in episodes for t in e.traces for turn in t.turns for call in turn.calls
        ),
        cap=case.cap,
        makespan_s=round(seconds, 4),
        critical_path_s=round(path, 4),
        overhead=round(seconds / path, 4),
        events_per_s=round(events / seconds, 1),
        bytes_per_agent=0.0,
        states=states(episodes),
    )


def states(episodes: Sequence[Episode]) -> dict[str, int]:
    """How episodes ended, and (``agents ...``) how their agents did."""
    counts = Counter(str(episode.status) for episode in episodes)
    counts.update(f"agents {trace.status}" for episode in episodes for trace in episode.traces)
    return dict(sorted(counts.items()))


def memory(case: Case, words: Tokenizer) -> float:
    """Peak bytes of Python objects per agent, without token lists; short latencies, so that all are alive."""
    quick = replace(case, model=Latency(median_s=0.001), tool=Latency(median_s=0.001))
    run_on(SkippingLoop, play(replace(quick, width=1, calls=1), words, 0))  # what is cached once is nobody's
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    episodes, _ = run_on(SkippingLoop, play(quick, words, 0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    traces = [trace for episode in episodes for trace in episode.traces]
    tokens = sum(sys.getsizeof(values) for t in traces for values in (t.tokens, t.mask, t.logprobs, t.versions))
    return (peak - before - tokens) / len(traces)


def median(case: Case, words: Tokenizer, loop: Any, repeats: int) -> Row:
    """The run of ``repeats`` with the middle overhead, with memory from a separate run."""
    rows = sorted((measure(case, words, loop, seed) for seed in range(repeats)), key=lambda row: row.overhead)
    return replace(rows[len(rows) // 2], bytes_per_agent=round(memory(case, words)))


def show(row: Row) -> str:
    """One line of the table."""
    ends = ", ".join(f"{count} {name}" for name, count in row.states.items())
    cap = "-" if row.cap is None else str(row.cap)
    return (
        f"{row.width:>6}{row.calls:>7}{cap:>6}{row.makespan_s:>11.3f}{row.critical_path_s:>11.3f}{row.overhead:>10.3f}"
        f"{row.events_per_s:>10.0f}{row.bytes_per_agent / 1024:>9.1f}  {ends}"
    )


def fine_loop() -> asyncio.AbstractEventLoop:
    """Wall clock with timers to the microsecond: epoll rounds sleeps up to milliseconds, 5 % of a call."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    """Print the table; with ``--json`` write its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="widths 1, 100 and 300 only")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)  # as a rollout worker
    loop = SkippingLoop if options.clock == "cpu" else fine_loop
    words = tokenizer()
    print(" width  calls   cap makespan_s     path_s  overhead  events/s  KiB/agent  states")
    rows = []
    for case in QUICK if options.quick else FULL:
        rows.append(median(case, words, loop, options.repeats))
        print(show(rows[-1]), flush=True)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if options.clock == "wall" and load > cores / 2:
        print(f"load average {load:.1f} on {cores} cores: these are this load's figures; --clock cpu does not see it")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
