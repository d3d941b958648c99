"""What a continued episode has already used: tokens, time, steps and the rest of a turn, by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from benchmarks.simulated import Latency, SimulatedEnvironment, SkippingLoop, run_on, simulated_task
from envs.base import ErrorKind, Gold, Role, Task, ToolCall, ToolResult
from model.chat.kimi import KimiChat
from model.tokenizer.tokenizer import Tokenizer
from rollouts.config import BudgetConfig
from rollouts.engine.base import Completion, Finish, Sampling
from rollouts.engine.scripted import render_action
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.swarm.partial import Answers, Flight, Suspended, replay, turn_start, unanswered
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import Swarm, run_episode

TASK = Task(key="t", family="wide", split="test", prompt="What?", gold=Gold(kind="exact", answers=("42",)))
LOOK, ASSIGN = "look", "assign_task"


class Asked:
    """An engine that records requests, and returns ``answer`` after ``seconds``."""

    def __init__(self, answer: Callable[[], tuple[list[int], Finish]], seconds: float = 0.0) -> None:
        self.answer, self.seconds = answer, seconds
        self.asked: list[tuple[list[int], Sampling]] = []

    async def generate(self, prompt, sampling, *, session, deadline_s, media=()) -> Completion:
        self.asked.append((list(prompt), sampling))
        await asyncio.sleep(self.seconds)
        tokens, finish = self.answer()
        return Completion(tokens=tokens, logprobs=[0.0] * len(tokens), finish=finish, policy_version=0)

    async def release(self, session: str) -> None:
        pass


def call(name: str, number: int = 0) -> ToolCall:
    return ToolCall(id=f"functions.{name}:{number}", name=name, arguments={"agent": "w", "prompt": "p"})


def turn(start: int, end: int, *names: str, answered: bool = True, spawned: Sequence[str] = ()) -> Turn:
    calls = [call(name, i) for i, name in enumerate(names)]
    results = [ToolResult(text="r") for _ in calls] if answered else []
    return Turn(start=start, end=end, calls=calls, results=results, spawned=list(spawned), t_model=float(start))


def trace(agent_id: str, turns: list[Turn], length: int, **fields) -> Trace:
    """Tokens, those of the turns sampled; ``more`` sampled ones at the end belong to no turn yet."""
    more = fields.pop("more", 0)
    mask = [any(t.start <= i < t.end for t in turns) for i in range(length)] + [True] * more
    return Trace(
        agent_id=agent_id,
        role=Role.SUBAGENT if "/" in agent_id else Role.ORCHESTRATOR,
        parent=agent_id.rpartition("/")[0] or None,
        tokens=[5] * len(mask),
        mask=mask,
        logprobs=[0.0] * len(mask),
        versions=[0 if m else -1 for m in mask],
        turns=turns,
        **fields,
    )


def saved(*traces: Trace, wall_s: float = 0.0, task: Task = TASK, answers: dict | None = None) -> Suspended:
    episode = Episode(
        task=task, index=0, seed=1, traces=list(traces), status=EpisodeStatus.FAILED, wall_s=wall_s, critical_budget=0
    )
    return Suspended(episode=episode, agents={"w": "Work."}, answers=answers or {})


def swarm_of(state: Suspended, tokenizer: Tokenizer, **budget) -> Swarm:
    settings = SwarmSettings(
        chat=KimiChat(tokenizer), pool=lambda trace: pytest.fail("asked"), budget=BudgetConfig(**budget)
    )
    return Swarm(state.episode.task, settings, index=0, seed=1, critical_budget=0, flight=Flight(saved=state))


def still() -> SkippingLoop:
    return SkippingLoop(cpu=False)


# two turns: 3 and 2 tokens, the first with two sub-agents of 2 and 1 turns; then 4 tokens of a turn that was cut short
def half_way() -> Suspended:
    root = trace("0", [turn(6, 9, ASSIGN, ASSIGN, spawned=("0/0", "0/1")), turn(12, 14, LOOK)], 20, more=4)
    first = trace("0/0", [turn(2, 5, LOOK), turn(8, 9)], 9, status=TraceStatus.FINISHED)
    second = trace("0/1", [turn(2, 8)], 8, status=TraceStatus.FINISHED)
    return saved(root, first, second, wall_s=7.0)


async def test_all_tokens_that_were_sampled_stay_spent(tokenizer: Tokenizer):
    assert swarm_of(half_way(), tokenizer).sampled == (3 + 2 + 4) + (3 + 1) + 6


async def test_critical_steps_of_finished_stages_stay_spent(tokenizer: Tokenizer):
    assert swarm_of(half_way(), tokenizer)._meter.steps == (1 + 2) + 1


async def test_a_stage_that_is_not_answered_yet_is_charged_when_it_is(tokenizer: Tokenizer):
    root = trace("0", [turn(6, 9, LOOK), turn(12, 14, ASSIGN, answered=False, spawned=("0/0",))], 14)
    swarm = swarm_of(saved(root, trace("0/0", [turn(2, 5)], 5)), tokenizer)
    assert unanswered(root) is root.turns[1]
    assert swarm._meter.steps == 1
    swarm.stage_done(root.turns[1])
    assert swarm._meter.steps == 1 + (1 + 1)


def test_its_time_goes_on_where_it_stood(tokenizer: Tokenizer):
    async def age() -> float:
        swarm = swarm_of(half_way(), tokenizer)
        await asyncio.sleep(2.0)
        return swarm.elapsed()

    assert run_on(still, age()) == pytest.approx(9.0)


@pytest.mark.parametrize(("before", "ended"), [(0.0, False), (7.0, False), (9.5, True)])
def test_of_its_deadline_only_the_rest_is_left(tokenizer: Tokenizer, before: float, ended: bool):
    """An episode of at most 10 s whose only turn takes one."""
    tokens = render_action(KimiChat(tokenizer), "done", 0)
    engine = Asked(lambda: (tokens, Finish.STOP), seconds=1.0)
    settings = SwarmSettings(chat=KimiChat(tokenizer), pool=lambda trace: engine, budget=BudgetConfig(episode_s=10.0))
    task = simulated_task(0)
    state = saved(trace("0", [], 8), wall_s=before, task=task)

    async def play() -> Episode:
        environment = SimulatedEnvironment(Latency(median_s=0.0))
        flight = Flight(saved=state)
        return await run_episode(task, environment, settings, index=0, seed=1, critical_budget=0, flight=flight)

    episode = run_on(still, play())
    assert (episode.limit == "episode_s") == ended
    assert episode.status is (EpisodeStatus.FAILED if ended else EpisodeStatus.ANSWERED)
    assert episode.wall_s == pytest.approx(10.0 if ended else before + 1.0)


@pytest.mark.parametrize(("written", "left"), [(0, 12), (5, 7), (11, 1)])
async def test_a_turn_that_was_cut_short_gets_the_rest_of_its_tokens(tokenizer: Tokenizer, written: int, left: int):
    engine = Asked(lambda: ([5], Finish.LENGTH))
    settings = SwarmSettings(chat=KimiChat(tokenizer), pool=lambda trace: engine, budget=BudgetConfig(turn_tokens=12))
    task = simulated_task(0)
    root = trace("0", [], 8, more=written)
    assert turn_start(root) == 8
    environment = SimulatedEnvironment(Latency(median_s=0.0))
    flight = Flight(saved=saved(root, task=task))
    episode = await run_episode(task, environment, settings, index=0, seed=1, critical_budget=0, flight=flight)
    [(prompt, sampling)] = engine.asked
    assert (len(prompt), sampling.max_new_tokens) == (8 + written, left)
    [only] = episode.orchestrator.turns
    assert (only.start, only.end) == (8, 8 + written + 1)  # one turn, what was written before and after the halt


async def test_a_turn_that_was_cut_short_goes_on_though_the_tokens_are_spent_by_now(tokenizer: Tokenizer):
    """It was within its limits when it began; the next turn is not."""
    engine = Asked(lambda: ([5], Finish.LENGTH))
    budget = BudgetConfig(total_tokens=3, turn_tokens=12)
    settings = SwarmSettings(chat=KimiChat(tokenizer), pool=lambda trace: engine, budget=budget)
    task = simulated_task(0)
    for more, asked in ((4, 1), (0, 0)):
        engine.asked.clear()
        root = trace("0", [turn(6, 9, LOOK)], 12, more=more)
        environment = SimulatedEnvironment(Latency(median_s=0.0))
        flight = Flight(saved=saved(root, task=task))
        episode = await run_episode(task, environment, settings, index=0, seed=1, critical_budget=0, flight=flight)
        assert len(engine.asked) == asked
        assert episode.limit == ("" if asked else "total_tokens")


class Session:
    def __init__(self) -> None:
        self.made: list[tuple[str, str]] = []

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        self.made.append((agent_id, call.id))
        return ToolResult(text="again")


async def test_tool_calls_are_made_again_in_the_order_in_which_they_were_asked():
    root = trace("0", [turn(2, 4, LOOK), turn(10, 12, LOOK, ASSIGN), turn(30, 32, LOOK, LOOK)], 32)
    sub = trace("0/0", [turn(5, 7, LOOK), turn(20, 22, LOOK, answered=False)], 22)
    root.turns[2].results[0] = ToolResult(text="no", error=ErrorKind.BUDGET)  # was never made
    session = Session()
    await replay(saved(root, sub), session, 1.0)
    look = "functions.look:{}".format  # at the times 2, 5, 10 and 30
    assert session.made == [("0", look(0)), ("0/0", look(0)), ("0", look(0)), ("0", look(1))]


async def test_of_a_turn_that_is_being_answered_the_calls_with_an_answer_are_made_again():
    root = trace("0", [turn(2, 4, LOOK, LOOK, LOOK, answered=False)], 4)
    state = saved(root, answers={"0": Answers(results={0: ToolResult(text="a"), 2: ToolResult(text="c")})})
    session = Session()
    await replay(state, session, 1.0)
    assert session.made == [("0", "functions.look:0"), ("0", "functions.look:2")]
