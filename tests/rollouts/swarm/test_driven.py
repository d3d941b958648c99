"""Agent programs as episodes: what they ask the policy through a real socket becomes traces that train."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from envs.base import Gold, Score, Task
from envs.driver import Driven
from envs.harness import HarnessConfig, HarnessEnvironment
from model.chat.kimi import KimiChat, assistant_pieces
from model.tokenizer.tokenizer import Tokenizer
from parl.learn.rows import step_rows
from rollouts.config import BudgetConfig
from rollouts.critical_path import critical_steps
from rollouts.engine.base import Completion, Finish, Sampling
from rollouts.episode import Episode, EpisodeStatus, TraceStatus
from rollouts.faults import EngineFailed, Unscored
from rollouts.gateway.door import Doors
from rollouts.noise import noise_key
from rollouts.swarm.partial import Flight
from rollouts.swarm.settings import SwarmSettings
from rollouts.swarm.swarm import run_episode

HERE = "test_driven"
TASK = Task(key="t", family="user", split="train", prompt="How old is Kim?", gold=Gold(kind="none"))


class Echo:
    """An engine that answers ``turn NUMBER of its session``, or raises ``error``."""

    def __init__(self, tokenizer: Tokenizer, error: Exception | None = None) -> None:
        self.tokenizer, self.error = tokenizer, error
        self.turns: dict[str, int] = {}
        self.asked: list[Sampling] = []

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Any = ()
    ):
        self.asked.append(sampling)
        if self.error:
            raise self.error
        self.turns[session] = self.turns.get(session, 0) + 1
        new = self.tokenizer.encode_segments(assistant_pieces(f"turn {self.turns[session]}", [], thinking=False))
        return Completion(tokens=new, logprobs=[-0.5] * len(new), finish=Finish.STOP, policy_version=3)

    async def release(self, session: str) -> None:
        self.turns.pop(session, None)


@contextlib.asynccontextmanager
async def doors(tokenizer: Tokenizer, engine: Echo) -> AsyncIterator[Doors]:
    opened = Doors(lambda: engine, KimiChat(tokenizer), 4096)
    try:
        yield opened
    finally:
        await opened.close()


async def play(tokenizer: Tokenizer, call: str = "", *, engine: Echo | None = None, **more: Any) -> Episode:
    """An episode of the function ``call`` of this module, or of ``config``."""
    engine = engine or Echo(tokenizer)
    config = more.pop("config", None) or HarnessConfig(call=f"{HERE}:{call}", range=more.pop("range", (0.0, 1.0)))
    budget = BudgetConfig(**{"episode_s": 20.0, **more.pop("budget", {})})
    flight = more.pop("flight", None)
    async with doors(tokenizer, engine) as opened:
        settings = SwarmSettings(
            chat=KimiChat(tokenizer), pool=lambda trace: engine, budget=budget, doors=lambda: opened, **more
        )
        environment = HarnessEnvironment(config)
        return await run_episode(TASK, environment, settings, index=2, seed=7, critical_budget=0, flight=flight)


async def post(run: Any, path: str, body: Any) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        return await client.post(f"{run.url}{path}", json=body, headers={"Authorization": f"Bearer {run.key}"})


async def ask(run: Any, messages: list[dict[str, Any]], **more: Any) -> str:
    reply = await post(run, "/chat/completions", {"model": run.model, "messages": messages, **more})
    reply.raise_for_status()
    messages.append(reply.json()["choices"][0]["message"])
    return messages[-1]["content"]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


# ---------------------------------------------------------------- programs


async def two_turns(run):
    messages = [user(run.task.prompt)]
    await ask(run, messages, max_tokens=3000, temperature=0.1)
    answer = await ask(run, [*messages, user("Sure?")])
    assert (await post(run, "/parl/reward", {"reward": 0.75, "parts": {"polite": 1}})).status_code == 200
    return answer


async def a_team(run):
    plan = [user("Plan.")]
    await ask(run, plan)
    await asyncio.gather(*(ask(run, [user(f"Do part {number}.")]) for number in range(3)))
    await ask(run, [*plan, user("Sum up.")])
    return Driven(answer="42", score=Score(value=1.0))


async def breaks_off(run):
    await ask(run, [user("Hello")])
    raise RuntimeError("I cannot read this")


async def never_asks(run):
    return "42"


async def forgets_the_reward(run):
    return await ask(run, [user("Hello")])


async def asks_for_ever(run):
    messages = [user("Hello")]
    while True:
        await ask(run, messages)
        messages.append(user("More"))


async def hangs(run):
    await ask(run, [user("Hello")])
    await asyncio.sleep(60)


async def swallows_errors(run):
    with contextlib.suppress(httpx.HTTPStatusError):
        await ask(run, [user("Hello")])
    return "fine"


async def looks_around(run):
    await ask(run, [user("Hello")])
    async with httpx.AsyncClient(trust_env=False) as client:
        codes = [(await client.get(f"{run.url}/models", headers={"Authorization": "Bearer sk-other"})).status_code]
        own = {"Authorization": f"Bearer {run.key}"}
        codes += [
            (await client.get(f"{run.url}{path}", headers=own)).status_code for path in ("/models", "/parl/episodes")
        ]
    codes += [(await post(run, "/parl/reward", {"reward": "much"})).status_code]
    return Driven(answer=str(codes), score=Score(value=0.0))


async def posts_too_much(run):
    await ask(run, [user("Hello")])
    await post(run, "/parl/reward", {"reward": 7})


def blocks(run):
    async def talk():
        return await ask(run, [user("Hello")])

    asyncio.run(talk())
    return Driven(answer="sync", score=Score(value=1.0))


# ---------------------------------------------------------------- tests


async def test_a_program_asks_over_several_turns_and_posts_its_reward(tokenizer: Tokenizer):
    engine = Echo(tokenizer)
    episode = await play(tokenizer, "two_turns", engine=engine, temperature=0.7)
    assert episode.status is EpisodeStatus.ANSWERED and episode.answer == "turn 2"
    assert episode.score == Score(value=0.75, parts={"polite": 1.0})
    [trace] = episode.traces
    assert [turn.content for turn in trace.turns] == ["turn 1", "turn 2"] and trace.trainable
    assert trace.status is TraceStatus.FINISHED and {v for v in trace.versions if v >= 0} == {3}
    assert [asked.temperature for asked in engine.asked] == [0.7, 0.7]  # the learner's, whatever was asked
    assert engine.asked[0].max_new_tokens == BudgetConfig().turn_tokens
    assert not engine.turns  # released


async def test_the_same_attempt_is_sampled_alike_and_another_one_is_not(tokenizer: Tokenizer):
    seeds = []
    for _ in range(2):
        engine = Echo(tokenizer)
        await play(tokenizer, "two_turns", engine=engine)
        seeds.append([asked.seed for asked in engine.asked])
    assert seeds[0] == seeds[1] and len(set(seeds[0])) == 1
    async with doors(tokenizer, engine) as opened:
        name = f"{noise_key('t'):016x}-2"
        assert seeds[0][0] == noise_key(7, "0.0", len(name), name, "0")
        assert opened._server is None


async def test_conversations_of_several_agents_become_traces_that_train(tokenizer: Tokenizer):
    episode = await play(tokenizer, "a_team")
    assert [trace.agent_id for trace in episode.traces] == ["0", "0/0", "0/1", "0/2"]
    assert sorted(trace.prompt for trace in episode.subagents) == [f"Do part {n}." for n in range(3)]
    assert sorted(episode.orchestrator.turns[0].spawned) == ["0/0", "0/1", "0/2"]  # between its two turns
    assert critical_steps(episode) == 3 and episode.answer == "42" and episode.score == Score(value=1.0)
    episode.rewards = {"total": 1.0}
    other = await play(tokenizer, "two_turns")
    other.rewards = {"total": 0.0}
    rows = step_rows([episode, other])
    assert len(rows) == 5 and {float(row.advantages.max()) for row in rows[:4]} == {0.5}


async def test_a_program_that_breaks_off_earns_the_lowest_reward(tokenizer: Tokenizer):
    episode = await play(tokenizer, "breaks_off", range=(-1.0, 1.0))
    assert episode.status is EpisodeStatus.MALFORMED and "I cannot read this" in episode.error
    assert episode.score == Score(value=-1.0, success=False, low=-1.0)
    assert episode.orchestrator.turns and not episode.answer


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ("never_asks", "never asked the policy"),
        ("forgets_the_reward", "posted no reward"),
        ("posts_too_much", "outside"),
    ],
)
async def test_a_program_that_cannot_be_trained_on_is_reported_and_not_scored(
    tokenizer: Tokenizer, call: str, said: str
):
    flight = Flight()
    episode = await play(tokenizer, call, flight=flight)
    assert episode.void and said in episode.error and flight.fault is None
    assert call != "forgets_the_reward" or Unscored.__name__ in episode.error


async def test_a_budget_ends_the_program_and_is_the_policys_own_end(tokenizer: Tokenizer):
    episode = await play(tokenizer, "asks_for_ever", budget={"orchestrator_steps": 3})
    assert episode.status is EpisodeStatus.OVER_BUDGET and episode.limit == "steps"
    assert episode.orchestrator.steps == 3 and episode.score == Score(value=0.0, success=False)
    episode = await play(tokenizer, "asks_for_ever", budget={"total_tokens": 10})
    assert episode.limit == "total_tokens"


async def test_an_engines_fault_is_the_machines_though_the_program_went_on(tokenizer: Tokenizer):
    flight = Flight()
    episode = await play(tokenizer, "swallows_errors", engine=Echo(tokenizer, ValueError("full")), flight=flight)
    assert isinstance(flight.fault, EngineFailed) and episode.void and "full" in str(flight.fault)


async def test_a_program_reaches_its_own_episode_alone(tokenizer: Tokenizer):
    assert (await play(tokenizer, "looks_around")).answer == "[401, 200, 404, 400]"


async def test_a_blocking_program_runs_beside_the_loop(tokenizer: Tokenizer):
    assert (await play(tokenizer, "blocks")).answer == "sync"


async def test_the_episodes_deadline_ends_a_program(tokenizer: Tokenizer):
    episode = await play(tokenizer, "hangs", budget={"episode_s": 1.0})
    assert episode.limit == "episode_s" and episode.void and len(episode.orchestrator.turns) == 1


PROGRAM = """
import json, os, sys, urllib.request
def post(url, body):
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    return json.loads(urllib.request.urlopen(request, timeout=20).read())
task = json.loads(os.environ["PARL_TASK"])
assert "gold" not in task and "PARL_SECRET" not in os.environ
messages = [{"role": "user", "content": task["prompt"]}]
body = {"model": os.environ["PARL_MODEL"], "messages": messages}
reply = post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body)
"""


async def command(tokenizer: Tokenizer, folder: Path, rest: str, **more: Any) -> Episode:
    file = folder / "agent.py"
    file.write_text(PROGRAM + rest)
    return await play(tokenizer, config=HarnessConfig(command=("python", str(file))), **more)


async def test_a_command_is_given_its_task_and_its_door(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("PARL_SECRET", "x")
    rest = (
        'post(os.environ["PARL_REWARD_URL"], {"reward": 0.5}); print("said", reply["choices"][0]["message"]["content"])'
    )
    episode = await command(tokenizer, tmp_path, rest)
    assert (episode.status, episode.answer) == (EpisodeStatus.ANSWERED, "said turn 1"), episode.error
    assert episode.score == Score(value=0.5)
    rest = 'post(os.environ["PARL_REWARD_URL"], {"reward": 0.5}); open(os.environ["PARL_ANSWER"], "w").write("37")'
    assert (await command(tokenizer, tmp_path, rest)).answer == "37"


async def test_a_command_that_fails_shows_its_error_and_one_that_is_gone_is_named(tokenizer: Tokenizer, tmp_path: Path):
    episode = await command(tokenizer, tmp_path, 'sys.exit("no such plan")')
    assert episode.status is EpisodeStatus.MALFORMED and "no such plan" in episode.error
    flight = Flight()
    gone = await play(tokenizer, config=HarnessConfig(command=("no-such-agent",)), flight=flight)
    assert gone.void and "no-such-agent" in gone.error


async def test_what_a_command_leaves_running_is_ended(tokenizer: Tokenizer, tmp_path: Path):
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(1.5); open({str(mark)!r}, 'w')"
    rest = f'import subprocess; subprocess.Popen([sys.executable, "-c", {child!r}]); import time; time.sleep(30)'
    episode = await command(tokenizer, tmp_path, rest, budget={"episode_s": 1.0})
    assert episode.limit == "episode_s"
    await asyncio.sleep(2.0)
    assert not mark.exists()


def test_a_program_is_named_once_and_its_range_rises():
    for given in ({}, {"command": ("a",), "call": "b:c"}, {"command": ("a",), "range": (1.0, 0.0)}):
        with pytest.raises(ValueError, match=r"give either|in this order"):
            HarnessConfig(**given)
    with pytest.raises(ValueError, match="has no gone"):
        list(HarnessEnvironment(HarnessConfig(call=f"{HERE}:gone")).notes())
