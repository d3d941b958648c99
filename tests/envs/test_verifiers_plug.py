"""A task set of verifiers 0.4, with the real package: its tools, its state, its rewards; and what is refused."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from envs.base import ErrorKind, Score, Scorer, ToolCall, ToolResult
from envs.plugs.verifiers import VerifiersConfig, VerifiersEnvironment

TASKSET = '''
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: int

class Count(vf.State):
    calls: int = 0

class SumsConfig(vf.TasksetConfig):
    size: int = 20

class Adder(vf.Toolset[vf.ToolsetConfig, Count]):
    async def setup_task(self, task):
        self.secret = task.answer

    @vf.tool
    async def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        self.state.calls += 1
        return a + b

    @vf.tool
    async def hint(self) -> str:
        """Get help."""
        return f"below {self.secret + 1}"

class Book(vf.Toolset[vf.SharedToolsetConfig]):
    TOOL_PREFIX = None

    @vf.tool
    async def look_up(self, word: str) -> str:
        """Look up a word."""
        return {"two": "2"}[word]

class Sum(vf.Task[Data, Count]):
    @vf.reward(weight=0.8)
    async def right(self, task, trace) -> float:
        return float(trace.last_reply == str(task.answer))

    @vf.reward(weight=0.2)
    async def short(self, trace) -> float:
        return float(trace.state.calls <= 1)

    @vf.metric
    async def turns(self, trace) -> float:
        return len(trace.assistant_messages)

    @classmethod
    def toolsets(cls, config):
        return [Adder(vf.ToolsetConfig())]

class Sums(vf.Taskset[Sum, SumsConfig]):
    def load(self):
        for n in range(self.config.size):
            data = Data(prompt=f"What is {n} + 1?", system_prompt="Answer the number.", answer=n + 1)
            yield Sum(data, self.config.task)

    @classmethod
    def toolsets(cls, config):
        return [Book(vf.SharedToolsetConfig())]

class Boxed(Sum):
    @vf.reward
    async def tests(self, runtime) -> float:
        return 1.0

class BoxedSums(vf.Taskset[Boxed, SumsConfig]):
    def load(self):
        yield Boxed(Data(prompt="?", answer=1), self.config.task)

__all__ = ["Sums"]
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("verifiers.v1", reason="verifiers 0.4 is not installed")
    name = f"their_sums_{tmp_path.name}".lower()  # as verifiers spells modules
    (tmp_path / f"{name}.py").write_text(TASKSET)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def play(env: VerifiersEnvironment, answer: str, *wanted: tuple[str, dict[str, Any]]) -> tuple[list[ToolResult], Score]:
    async def run() -> tuple[list[ToolResult], Score]:
        task = list(env.tasks("train"))[1]
        session: Any = await env.open(task, seed=3)
        assert isinstance(session, Scorer)
        calls = [ToolCall(id=f"c{i}", name=name, arguments=given) for i, (name, given) in enumerate(wanted)]
        results = [await session.call("0", call, deadline_s=30) for call in calls]
        turns = [SimpleNamespace(content="", calls=calls, results=results)] if calls else []
        turns.append(SimpleNamespace(content=answer, calls=[], results=[]))
        score = await session.score(SimpleNamespace(answer=answer, task=task, traces=[SimpleNamespace(turns=turns)]))
        await session.close()
        await env.close()
        return results, score

    return asyncio.run(run())


@pytest.mark.parametrize("by", ["MODULE", "MODULE:Sums"])
def test_tasks_tools_and_rewards(module: str, by: str):
    config = VerifiersConfig(taskset=by.replace("MODULE", module), options={"size": 30})
    env = pickle.loads(pickle.dumps(VerifiersEnvironment(config)))
    counts = {split: len(list(env.tasks(split))) for split in ("train", "val", "test")}
    assert counts == {"train": 24, "val": 3, "test": 3}
    assert next(iter(env.tasks("train"))).prompt == "Answer the number.\n\nWhat is 0 + 1?"
    assert {tool.name for tool in env.tools()} == {"look_up", "adder_add", "adder_hint"}
    add = ("adder_add", {"a": 1, "b": 1})
    results, score = play(env, "2", add, ("adder_hint", {}), ("look_up", {"word": "two"}), ("look_up", {"word": "x"}))
    assert [result.text for result in results[:3]] == ["2", "below 3", "2"]
    assert results[3].error is ErrorKind.SERVER and not results[3].machine
    assert score.value == pytest.approx(1.0) and score.parts == {"right": 1.0, "short": 1.0, "turns": 2.0}
    _, score = play(env, "7", add, add)
    assert score.value == pytest.approx(0.0) and score.parts["short"] == 0.0


def test_tasks_whose_long_keys_begin_alike_are_told_apart():
    env = VerifiersEnvironment(VerifiersConfig(taskset="nowhere-at-all"))
    data = SimpleNamespace(system_prompt=None, prompt_text="Mend it.")
    names = [f"scikit-learn__scikit-learn-{number}" for number in (13142, 14141)]
    env.__dict__["all_tasks"] = [SimpleNamespace(key=name, data=data) for name in names]
    keys = [task.key for task in env.tasks("train")]
    assert len(set(keys)) == 2 and all(len(key) == 16 for key in keys)


def test_what_needs_a_runtime_is_refused_and_wrong_names_are_explained(module: str):
    with pytest.raises(ValueError, match=r"Boxed needs a runtime \(tests\), which there is none of here"):
        VerifiersEnvironment(VerifiersConfig(taskset=f"{module}:BoxedSums")).tools()
    with pytest.raises(ValueError, match=r"envs\.config\.taskset = nowhere-at-all: .*not found"):
        VerifiersEnvironment(VerifiersConfig(taskset="nowhere-at-all")).tools()
    with pytest.raises(ValueError, match="siz"):
        VerifiersEnvironment(VerifiersConfig(taskset=module, options={"siz": 3})).tools()
