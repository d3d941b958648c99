"""Step environments: what they share, with a game of our own, and contracts with each real package."""

from __future__ import annotations

import asyncio
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.base import ErrorKind, Gold, Score, Scorer, Session, Task, ToolCall, ToolResult, ToolSpec
from envs.plugs.session import Refused
from envs.steps.session import Opening, StepEnvironment, Stepped, StepSection, transcript

ADD = ToolSpec(name="add", description="Add.", parameters={"type": "object", "properties": {}})
RUNNING: list[int] = []


class Counting:
    """Ends at ten; each call is checked to be alone."""

    def __init__(self) -> None:
        self.sum, self.closed = 0, False

    async def begin(self, seed: int) -> Opening:
        self.sum = seed % 3
        return Opening(text=f"It stands at {self.sum}.", tools=(ADD,))

    async def step(self, call: ToolCall) -> Stepped:
        RUNNING.append(1)
        assert len(RUNNING) == 1
        try:
            await asyncio.sleep(call.arguments.get("seconds", 0.001))
            number = call.arguments.get("number")
            if not isinstance(number, int):
                raise Refused(ErrorKind.BAD_ARGS, "number must be a whole number")
            self.sum += number
            return Stepped(text=f"{self.sum}", reward=number / 10, done=self.sum >= 10)
        finally:
            RUNNING.pop()

    async def finish(self, episode: Any, *, done: bool) -> Stepped | None:
        return Stepped(text="", reward=-1.0, done=False) if episode.answer == "give up" else None

    async def close(self) -> None:
        self.closed = True


class CountingEnvironment(StepEnvironment):
    def game(self, task: Task | None) -> Counting:
        return Counting()


def counting(**more: Any) -> CountingEnvironment:
    return CountingEnvironment(StepSection(**{"low": -2, "high": 2, "starts": 5} | more))


def play(
    env: StepEnvironment, *wanted: tuple[str, dict[str, Any]], task: Task | None = None, answer: str = "", **how: Any
) -> tuple[list[ToolResult], Score | Exception]:
    """The results of calls, one after another (or ``together``), and the score."""

    async def run() -> tuple[list[ToolResult], Score | Exception]:
        asked = task or next(iter(env.tasks("train")))
        session: Any = await env.open(asked, seed=5)
        assert isinstance(session, Session) and isinstance(session, Scorer)
        calls = [ToolCall(id=f"c{i}", name=name, arguments=given) for i, (name, given) in enumerate(wanted)]
        deadline = how.get("deadline_s", 60.0)
        made = [session.call("0", call, deadline_s=deadline) for call in calls]
        results = list(await asyncio.gather(*made)) if how.get("together") else [await one for one in made]
        trace = SimpleNamespace(turns=[])
        try:
            score = await session.score(SimpleNamespace(answer=answer, task=asked, traces=[trace]))
        except ValueError as error:
            score = error
        await session.close()
        await session.close()
        return results, score

    return asyncio.run(run())


def test_starting_states_are_tasks_and_a_group_begins_alike():
    env = pickle.loads(pickle.dumps(counting(prompt="Reach ten.")))
    tasks = list(env.tasks("train"))
    assert len({task.key for task in tasks}) == 5 and {task.gold.kind for task in tasks} == {"none"}
    assert tasks[1].prompt == "Reach ten.\n\nIt stands at 1."
    assert not {task.key for task in env.tasks("val")} & {task.key for task in tasks}
    assert env.task_stream("train", 0)[6] == tasks[1]
    [said], _ = play(env, ("add", {"number": 0}), task=tasks[1])
    assert said.text == "1"
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        env.tasks("dev")


def test_calls_wait_for_each_other_rewards_are_summed_and_done_ends_it():
    results, score = play(counting(), *[("add", {"number": 1})] * 10, together=True)
    assert [result.text for result in results] == [str(n) for n in range(1, 11)]
    assert [result.done for result in results] == [False] * 9 + [True]
    assert isinstance(score, Score) and score.value == pytest.approx(1.0) and score.parts["finished"] == 1
    assert not counting().spreads and not counting().stateless and not counting().repeatable
    _, whole = play(counting(low=0, high=1), *[("add", {"number": 1})] * 10)
    assert isinstance(whole, Score) and whole.solved
    results, _ = play(counting(), ("add", {"number": 10}), ("add", {"number": 1}))
    assert results[1].text == "error: the episode is over" and results[1].error is ErrorKind.CANCELLED


def test_a_refused_action_changes_nothing_and_the_end_may_cost():
    results, score = play(counting(), ("add", {}), ("add", {"number": 5}), answer="give up")
    assert results[0].error is ErrorKind.BAD_ARGS and results[1].text == "5"
    assert isinstance(score, Score) and score.value == pytest.approx(-0.5)
    assert score.parts == {"steps": 1.0, "finished": 0.0} and score.solved is False


def test_a_sum_outside_the_declared_range_is_an_error_with_the_fix():
    _, score = play(counting(), ("add", {"number": 30}))
    assert isinstance(score, ValueError) and "declare its low and high" in str(score)
    with pytest.raises(ValueError, match=r"low = 1.0 must be below high = 1.0"):
        counting(low=1, high=1)


def test_an_action_that_was_cut_off_ends_the_episode():
    results, _ = play(counting(), ("add", {"number": 1, "seconds": 9}), ("add", {"number": 1}), deadline_s=0.1)
    assert [result.error for result in results] == [ErrorKind.TIMEOUT, ErrorKind.CANCELLED]


def test_tasks_of_a_user_have_no_starting_state():
    task = Task(key="k", family="user", split="train", prompt="?", gold=Gold(kind="exact", answers=("1",)))
    with pytest.raises(ValueError, match=r"leave envs\.tasks out"):
        play(counting(), task=task)


def test_a_transcript_is_messages_in_openais_form():
    call, result = ToolCall(id="c", name="add", arguments={"number": 1}), ToolResult(text="1")
    turns = [
        SimpleNamespace(content="", calls=[call], results=[result]),
        SimpleNamespace(content="ten", calls=[], results=[]),
    ]
    episode = SimpleNamespace(task=SimpleNamespace(prompt="?"), traces=[SimpleNamespace(turns=turns)])
    roles = [message["role"] for message in transcript(episode)]
    assert roles == ["user", "assistant", "tool", "assistant"]


# ---------------------------------------------------------------- the real packages


def test_gymnasium():
    pytest.importorskip("gymnasium")
    from envs.steps.gymnasium import GymnasiumConfig, GymnasiumEnvironment

    lake = {"id": "FrozenLake-v1", "options": {"is_slippery": False, "render_mode": "ansi"}, "starts": 2}
    env = GymnasiumEnvironment(GymnasiumConfig(**lake))
    [tool] = env.tools()
    assert tool.parameters["properties"]["action"] == {"type": "integer", "minimum": 0, "maximum": 3}
    assert "[S]FFF" in next(iter(env.tasks("train"))).prompt
    way = [1, 1, 2, 2, 1, 2]
    results, score = play(env, ("act", {"action": 7}), ("act", {}), *(("act", {"action": a}) for a in way))
    assert [result.error for result in results[:2]] == [ErrorKind.BAD_ARGS] * 2
    assert results[-1].done and isinstance(score, Score) and score.value == 1.0 and score.solved
    results, score = play(env, *(("act", {"action": a}) for a in (1, 2)))  # into a hole
    assert results[-1].done and isinstance(score, Score) and score.value == 0.0
    with pytest.raises(ValueError, match=r"envs\.config\.id = FrozenLak-v1: .*Did you mean.*FrozenLake"):
        GymnasiumEnvironment(GymnasiumConfig(id="FrozenLak-v1")).tools()
    pole = GymnasiumEnvironment(GymnasiumConfig(id="Pendulum-v1", low=-2000, high=1))
    results, _ = play(pole, ("act", {"action": [0.5]}), ("act", {"action": [9.0]}), ("act", {"action": "left"}))
    assert [result.error for result in results] == [None, ErrorKind.BAD_ARGS, ErrorKind.BAD_ARGS]


def test_textarena(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("textarena")
    from envs.steps.textarena import TextArenaConfig, TextArenaEnvironment

    env = TextArenaEnvironment(TextArenaConfig(id="GuessTheNumber-v0", starts=3))
    task = next(iter(env.tasks("train")))
    assert "between 1 and 20" in task.prompt
    low, high, won = 1, 20, False
    guesses = []
    for _ in range(6):  # by halves; the game is the same each time
        guess = (low + high) // 2
        guesses.append(("act", {"text": f"[{guess}]"}))
        results, score = play(env, *guesses)
        if results[-1].done:
            won = isinstance(score, Score) and score.value == 1.0
            break
        assert results[-1].text.count("[GAME]") == 1  # only what is new
        low, high = (guess + 1, high) if "higher" in results[-1].text else (low, guess - 1)
    assert won
    (tmp_path / "their_player.py").write_text(
        "import re\ndef play(read):\n    return re.findall(r'\\[\\d\\]', read.split('Available Moves')[-1])[0]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    duel = {"id": "TicTacToe-v0", "players": 2, "opponent": "their_player:play", "low": -1, "starts": 1}
    games = TextArenaEnvironment(TextArenaConfig(**duel))
    results, score = play(games, *(("act", {"text": f"[{cell}]"}) for cell in (4, 2, 6)))
    assert results[-1].done and isinstance(score, Score) and score.value == 1.0
    with pytest.raises(ValueError, match="who plays the others of 2 players"):
        TextArenaEnvironment(TextArenaConfig(id="TicTacToe-v0", players=2))


def test_skyrl_gym():
    pytest.importorskip("skyrl_gym")
    from envs.steps.skyrl import SkyRlConfig, SkyRlEnvironment

    def task(**more: Any) -> Task:
        return Task(
            key="k", family="user", split="train", prompt="2+2?", gold=Gold(kind="exact", answers=("4",)), **more
        )

    sums = SkyRlEnvironment(SkyRlConfig(id="gsm8k"))
    _, good = play(sums, task=task(), answer="It is\n#### 4")
    _, bad = play(sums, task=task(), answer="#### 5")
    results, acted = play(sums, ("act", {"text": "#### 4"}), task=task(), answer="#### 5")
    assert isinstance(good, Score) and isinstance(bad, Score) and isinstance(acted, Score)
    assert (good.value, bad.value, acted.value) == (1.0, 0.0, 1.0) and results[0].done
    options = {"search_url": "http://127.0.0.1:9/retrieve", "topk": 1, "timeout": 1, "log_requests": False}
    plan = {"reward_spec": {"ground_truth": {"target": ["Rome"]}}}
    search = SkyRlEnvironment(SkyRlConfig(id="search", options=options, max_turns=3))
    ended = ("act", {"text": "<answer>Rome</answer>"})
    results, score = play(search, ("act", {"text": "hm"}), ended, task=task(plan=plan))
    assert [result.done for result in results] == [False, True] and isinstance(score, Score) and score.value == 1.0
    with pytest.raises(ValueError, match=r"envs\.tasks: this environment brings tools but no tasks"):
        list(sums.tasks("train"))


AVIARY = """
from aviary.core import DummyEnv, TaskDataset

class Stories(TaskDataset):
    def __init__(self, count=20): self.count = count
    def __len__(self): return self.count
    def get_new_env_by_idx(self, idx): return DummyEnv(task=f"topic {idx}")
"""


def test_aviary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("aviary.core", reason="fhaviary is not installed")
    from envs.steps.aviary import AviaryConfig, AviaryEnvironment

    (tmp_path / "their_stories.py").write_text(AVIARY)
    monkeypatch.syspath_prepend(str(tmp_path))
    env = AviaryEnvironment(AviaryConfig(dataset="their_stories:Stories"))
    assert [task.key for task in env.tasks("val")] == ["val-8", "val-18"] and len(list(env.tasks("train"))) == 16
    assert next(iter(env.tasks("test"))).prompt == "Write a 5 word story via print_story about topic 9"
    tools = {tool.name: tool for tool in env.tools()}
    assert tools["cast_int"].parameters["properties"]["x"]["type"] == "number"
    results, score = play(
        env, ("cast_int", {"x": 2.7}), ("cast_int", {"y": 1}), ("print_story", {"story": "a b c d e"})
    )
    assert results[0].text == "2" and results[1].error is ErrorKind.BAD_ARGS and results[2].done
    assert isinstance(score, Score) and score.value == 1.0
    with pytest.raises(ValueError, match=r"envs\.config\.dataset = dummy: has no length"):
        AviaryEnvironment(AviaryConfig(dataset="dummy")).tools()


OPENENV = '''
import sys
import uvicorn
from openenv.core.env_server import create_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

class Guess(Action):
    number: int

class Seen(Observation):
    said: str = ""

class Game(Environment):
    """Guess the number."""
    SUPPORTS_CONCURRENT_SESSIONS = True
    def __init__(self):
        super().__init__()
        self._state, self.number = State(), 0
    def reset(self, seed=None, episode_id=None, **more):
        self._state, self.number = State(episode_id=episode_id), (seed or 0) % 7
        return Seen(said="guess", done=False, reward=0.0)
    def step(self, action, timeout_s=None, **more):
        self._state.step_count += 1
        hit = action.number == self.number
        return Seen(said="hit" if hit else "miss", done=hit, reward=1.0 if hit else -0.1)
    @property
    def state(self):
        return self._state

if __name__ == "__main__":
    app = create_app(Game, Guess, Seen, env_name="game", max_concurrent_envs=20)
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
'''
FACTORY = """
from openenv.core.env_server.mcp_types import Tool
from openenv.core.harness import ResourceSession, ResourceSessionFactory, ToolResult, VerifyResult

class Session(ResourceSession):
    def __init__(self, task, seed): self.task, self.seed, self.calls = task, seed, 0
    def initial_messages(self): return [{"role": "user", "content": f"Count to {self.seed % 5}."}]
    def list_tools(self):
        return [Tool(name="count", description="Count.", input_schema={"type": "object", "properties": {}})]
    def call_tool(self, name, arguments):
        if arguments: return ToolResult(error="no arguments")
        self.calls += 1
        return ToolResult(data={"count": self.calls}, done=self.calls >= 3)
    def verify(self, transcript, final_state=None):
        assert transcript[0]["role"] == "user"
        return VerifyResult(env_reward=self.calls / 10)
    def close(self): self.task = None

class Factory(ResourceSessionFactory):
    def create(self, task, seed=None, episode_id=None): return Session(task, seed)
"""


@pytest.fixture
def openenv_server(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    pytest.importorskip("openenv.core", reason="openenv is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "their_game.py").write_text(OPENENV)
    process = subprocess.Popen([sys.executable, tmp_path / "their_game.py", str(port)])
    until = time.monotonic() + 120
    while time.monotonic() < until:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}", process
    process.kill()
    process.wait()


@pytest.mark.slow
def test_openenv_servers(openenv_server: tuple[str, subprocess.Popen[bytes]]):
    from envs.steps.openenv import OpenEnvConfig, OpenEnvEnvironment

    url, process = openenv_server
    env = OpenEnvEnvironment(OpenEnvConfig(url=url, low=-2.0, starts=9))
    [tool] = env.tools()
    assert tool.name == "act" and list(tool.parameters["properties"]) == ["number"]
    task = list(env.tasks("train"))[3]
    guesses = [("act", {"number": n}) for n in range(4)]
    results, score = play(env, ("act", {"number": "x"}), *guesses, task=task)
    assert results[0].error is ErrorKind.BAD_ARGS and not results[0].machine
    assert [result.text for result in results[1:]] == ["miss", "miss", "miss", "hit"] and results[-1].done
    assert isinstance(score, Score) and score.value == pytest.approx(0.7)

    async def many() -> list[list[str]]:
        async def one(number: int) -> list[str]:
            session = await env.open(list(env.tasks("train"))[number % 7])
            calls = [ToolCall(id="c", name="act", arguments={"number": n}) for n in range(number % 7 + 1)]
            said = [(await session.call("0", call, deadline_s=60)).text for call in calls]
            await session.close()
            return said

        return await asyncio.gather(*map(one, range(20)))

    assert [said[-1] for said in asyncio.run(many())] == ["hit"] * 20

    async def gone() -> list[ToolResult]:
        session = await env.open(task)
        call = ToolCall(id="c", name="act", arguments={"number": 0})
        said = [await session.call("0", call, deadline_s=60)]
        process.kill()
        process.wait()
        said += [await session.call("0", call, deadline_s=60), await session.call("0", call, deadline_s=60)]
        await session.close()
        return said

    assert [result.machine for result in asyncio.run(gone())] == [False, True, True]


@pytest.mark.slow
def test_openenv_resource_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("openenv.core.harness", reason="openenv is not installed")
    from envs.steps.openenv import OpenEnvConfig, OpenEnvEnvironment

    (tmp_path / "their_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    env = OpenEnvEnvironment(OpenEnvConfig(factory="their_factory:Factory", starts=4))
    assert [task.prompt for task in env.tasks("train")] == [f"Count to {n}." for n in range(4)]
    results, score = play(env, ("count", {"a": 1}), *[("count", {})] * 3)
    assert results[0].error is ErrorKind.SERVER and results[1].text == "1" and results[3].done
    assert isinstance(score, Score) and score.value == pytest.approx(0.3)
