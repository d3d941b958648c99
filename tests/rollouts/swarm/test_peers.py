"""A sub-agent on another worker: its stage's deadline, its episode's age, and how agents are spread."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.simulated import (
    Latency,
    SimulatedEngine,
    SimulatedEnvironment,
    SkippingLoop,
    fan_out,
    run_on,
    simulated_task,
)
from envs.base import Role
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from rollouts.config import BudgetConfig, LimitsConfig
from rollouts.episode import Trace, TraceStatus
from rollouts.swarm.limits import StopSwitch
from rollouts.swarm.placement import Job, Placement
from rollouts.swarm.remote_subagents import run_job
from rollouts.swarm.settings import SwarmSettings

SECOND = Latency(median_s=1.0)


def still() -> SkippingLoop:
    return SkippingLoop(cpu=False)


def job(elapsed_s: float, stage_s: float | None) -> Job:
    trace = Trace(agent_id="0/0", role=Role.SUBAGENT, name="prober", parent="0", parent_turn=0, prompt="part 0")
    return Job(
        name="j",
        task=simulated_task(0),
        index=0,
        seed=0,
        trace=trace,
        system="Probe.",
        steps=9,
        elapsed_s=elapsed_s,
        stage_s=stage_s,
        temperature=0.0,
        top_p=1.0,
    )


def ran(tokenizer: Tokenizer, given: Job, began: float = 100.0, **limits: float) -> Trace:
    """The trace of a job of three turns and two calls, a second each; the worker is ``began`` s old."""

    async def play() -> Trace:
        await asyncio.sleep(began)
        engine = SimulatedEngine(KimiChat(tokenizer), fan_out(1, 2), SECOND)
        settings = SwarmSettings(
            chat=KimiChat(tokenizer),
            pool=lambda trace: engine,
            budget=BudgetConfig(episode_s=1000.0),
            limits=LimitsConfig(**limits),
            switch=StopSwitch(),
        )
        return await run_job(given, SimulatedEnvironment(SECOND), settings)

    return run_on(still, play())


def test_its_times_are_the_episodes(tokenizer: Tokenizer):
    trace = ran(tokenizer, job(elapsed_s=40.0, stage_s=None))
    assert trace.status is TraceStatus.FINISHED
    assert [turn.t_start for turn in trace.turns] == pytest.approx([40.0, 42.0, 44.0])
    assert trace.turns[-1].t_end == pytest.approx(45.0)


@pytest.mark.parametrize(
    ("left", "status", "steps"), [(4.5, "cancelled", 2), (2.5, "cancelled", 1), (5.5, "finished", 3)]
)
def test_its_stage_ends_it_when_what_was_left_is_over(tokenizer: Tokenizer, left: float, status: str, steps: int):
    trace = ran(tokenizer, job(elapsed_s=40.0, stage_s=left))
    assert (trace.status, trace.steps) == (status, steps)
    assert trace.limit == ("stage_s" if status == "cancelled" else "")


def test_its_own_deadline_counts_from_its_beginning(tokenizer: Tokenizer):
    trace = ran(tokenizer, job(elapsed_s=40.0, stage_s=None), agent_s=2.5)
    assert (trace.status, trace.limit, trace.steps) == (TraceStatus.CANCELLED, "agent_s", 1)


class Peer:
    """A worker's handle that holds its jobs until released."""

    def __init__(self) -> None:
        self.running: list[asyncio.Future] = []
        self.subagent = self

    def remote(self, job: Job) -> asyncio.Future:
        self.running.append(asyncio.get_running_loop().create_future())
        return self.running[-1]


async def test_each_sub_agent_goes_to_whoever_has_fewest_and_a_free_place_is_taken_again():
    peers = [Peer(), Peer(), Peer()]
    placement = Placement(peers, mine=1)
    here: list[asyncio.Event] = []
    adopted: list[object] = []

    async def at_home() -> None:
        here.append(asyncio.Event())
        await here[-1].wait()

    def counts() -> list[int]:
        return [len(peers[0].running), len(here), len(peers[2].running)]

    async def place() -> asyncio.Task:
        task = asyncio.ensure_future(placement.run(job(0.0, None), at_home, adopted.append))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return task

    tasks = [await place() for _ in range(4)]
    assert counts() == [1, 2, 1]  # home first, then the next, the one after, home again
    await place()
    assert counts() == [1, 2, 2]
    peers[0].running[0].set_result("done there")
    await tasks[2]
    assert adopted == ["done there"]
    await place()
    await place()
    assert counts() == [3, 2, 2]
    for event in here:
        event.set()
    for peer in peers:
        for future in peer.running:
            if not future.done():
                future.set_result("late")
    await asyncio.sleep(0)
