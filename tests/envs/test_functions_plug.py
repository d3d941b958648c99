"""Python functions as tools: schemas, arguments, errors, deadlines, roles, and objects of an episode."""

from __future__ import annotations

import asyncio
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from envs.base import ErrorKind, Gold, Role, Score, Scorer, Task, ToolCall, ToolResult
from envs.plugs.functions import FunctionsConfig, FunctionsEnvironment
from envs.tasks_io import file_problem, load_tasks

TASK = Task(key="k", family="user", split="train", prompt="?", gold=Gold(kind="exact", answers=("1",)))
SOURCE = '''
from __future__ import annotations
import asyncio, time
from typing import Annotated, Literal
from pydantic import BaseModel, Field

__all__ = ["find", "later", "hang", "fail", "picture"]

class Place(BaseModel):
    town: str
    street: str | None = None

Hits = Annotated[int, Field(ge=1, description="hits")]

def find(place: Place, *, kind: Literal["shop", "bar"] = "shop", n: Hits = 3) -> dict:
    """Find places.

    By street, if there is one.
    """
    return {"at": place.town, "kind": kind, "n": n}

async def later(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "x" * 100

def hang(seconds: float) -> str:
    """Block."""
    time.sleep(seconds)
    return "woke"

def fail(text: str) -> None:
    """Raise."""
    raise KeyError(text)

def picture() -> bytes:
    """A picture."""
    return b"\\x89PNG\\r\\n\\x1a\\n" + b"0"

def _private() -> None: ...

class Basket:
    """One an episode."""
    def __init__(self, task, seed: int = 0):
        self.items, self.closed, self.seed = [], False, seed
    def add(self, item: str) -> int:
        """Add."""
        seen = len(self.items)
        time.sleep(0.01)
        self.items.append(item)
        assert len(self.items) == seen + 1
        return len(self.items)
    async def count(self) -> str:
        """Count."""
        return f"{len(self.items)} of {self.seed}"
    def close(self):
        self.closed = True
        CLOSED.append(self)

    def score(self, episode):
        return len(self.items) / 4

CLOSED = []

class Shop:
    """One an episode."""
    def __init__(self):
        self.sold = 0
    async def buy(self) -> int:
        """Buy."""
        sold = self.sold
        await asyncio.sleep(0.01)
        self.sold = sold + 1
        return self.sold
    def order(self, seconds: float = 0.01) -> int:
        """Order."""
        sold = self.sold
        time.sleep(seconds)
        self.sold = sold + 1
        return self.sold
    @staticmethod
    def price(item: str, count: int = 1) -> str:
        """Price."""
        return f"{count} {item}"
'''
UNUSABLE = """
from __future__ import annotations

def starred(*towns: str) -> str: ...
def odd(x: "Nowhere") -> str: ...
def rows(split):
    yield {"prompt": f"{split}?", "answer": "1"}
def endless():
    while True:
        yield {}
def broken():
    yield {"prompt": "a", "answer": "b"}
    raise OSError("no disk")
value = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"their_tools_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    (tmp_path / f"{name}_more.py").write_text(UNUSABLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def environment(*tools: str, **more: Any) -> FunctionsEnvironment:
    return FunctionsEnvironment(FunctionsConfig(tools=tools, **more))


def calls(
    env: FunctionsEnvironment, *wanted: tuple[str, dict[str, Any]], agent: str = "0", deadline_s: float = 5.0
) -> list[ToolResult]:
    async def run() -> list[ToolResult]:
        session = await env.open(TASK, seed=7)
        made = (ToolCall(id=str(i), name=name, arguments=given) for i, (name, given) in enumerate(wanted))
        try:
            return list(await asyncio.gather(*(session.call(agent, call, deadline_s=deadline_s) for call in made)))
        finally:
            await session.close()

    return asyncio.run(run())


def test_a_function_becomes_a_tool_with_its_types_and_words(module: str):
    [spec] = environment(f"{module}:find").tools()
    assert spec.name == "find" and spec.description == "Find places.\n\nBy street, if there is one."
    properties = spec.parameters["properties"]
    assert properties["n"] == {"default": 3, "description": "hits", "minimum": 1, "type": "integer"}
    assert properties["kind"]["enum"] == ["shop", "bar"] and spec.parameters["required"] == ["place"]
    assert "title" not in str(spec.parameters)


def test_arguments_get_their_types_and_what_does_not_fit_is_named(module: str):
    env = environment(f"{module}:find")
    good, short, wrong = calls(
        env,
        ("find", {"place": {"town": "Rome"}, "n": "4"}),
        ("find", {"place": {}}),
        ("find", {"place": {"town": "Rome"}, "n": 0, "size": 1}),
    )
    assert good.text == '{"at":"Rome","kind":"shop","n":4}' and good.error is None
    assert short.error is ErrorKind.BAD_ARGS and "place.town" in short.text
    assert wrong.error is ErrorKind.BAD_ARGS and "n: " in wrong.text and "size: " in wrong.text


def test_an_exception_is_a_short_error_and_a_picture_a_picture(module: str):
    failed, picture = calls(environment(module), ("fail", {"text": "lost " * 200}), ("picture", {}))
    assert failed.error is ErrorKind.SERVER and failed.text.startswith("error: KeyError: 'lost") and not failed.machine
    assert len(failed.text) < 330
    assert picture.text == "" and picture.images == (b"\x89PNG\r\n\x1a\n0",)


def test_blocking_functions_delay_neither_each_other_nor_their_deadline(module: str):
    began = time.monotonic()
    many = calls(environment(module), *[("hang", {"seconds": 0.4})] * 50)
    assert [result.text for result in many] == ["woke"] * 50 and time.monotonic() - began < 15
    began = time.monotonic()
    late = calls(environment(module), ("hang", {"seconds": 30}), ("later", {"seconds": 30}), deadline_s=0.2)
    assert [result.error for result in late] == [ErrorKind.TIMEOUT] * 2 and time.monotonic() - began < 25


def test_a_long_result_is_cut_and_says_so(module: str):
    [result] = calls(environment(module, result_chars=10), ("later", {"seconds": 0}))
    assert result.text == "x" * 10 + "\n[cut: 90 more characters]"


def test_each_role_has_its_tools(module: str):
    env = environment(module, orchestrator=("find",), subagents=("later", "find"))
    session = asyncio.run(env.open(TASK))
    assert [tool.name for tool in session.tools(Role.ORCHESTRATOR)] == ["find"]
    assert [tool.name for tool in session.tools(Role.SUBAGENT)] == ["find", "later"]
    [refused] = calls(env, ("later", {"seconds": 0}))
    [allowed] = calls(env, ("later", {"seconds": 0}), agent="0/1")
    assert refused.error is ErrorKind.UNKNOWN_TOOL and allowed.error is None
    with pytest.raises(ValueError, match=r'envs\.config\.subagents: there is no tool "latre"; there are: find, '):
        list(environment(module, subagents=("latre",)).notes())


def test_a_class_is_one_object_an_episode_whose_methods_never_run_together(module: str):
    env = environment(f"{module}:Basket")
    assert {tool.name for tool in env.tools()} == {"add", "count"}
    assert not env.stateless and not env.spreads and environment(module).stateless
    added = calls(env, *[("add", {"item": "a"})] * 8)
    assert sorted(int(result.text) for result in added) == list(range(1, 9))
    assert [result.text for result in calls(env, ("count", {}))] == ["0 of 7"]
    assert [basket.closed for basket in sys.modules[module].CLOSED] == [True, True]


def test_async_methods_of_an_object_run_one_after_another_and_not_beside_blocking_ones(module: str):
    env = environment(f"{module}:Shop")
    sold = calls(env, *[("buy", {}), ("order", {})] * 4)
    assert sorted(int(result.text) for result in sold) == list(range(1, 9))


def test_an_async_method_waits_for_a_blocking_one_that_outlived_its_deadline(module: str):
    async def run() -> list[str]:
        session = await environment(f"{module}:Shop").open(TASK)
        late = ToolCall(id="0", name="order", arguments={"seconds": 0.4})
        made = [await session.call("0", late, deadline_s=0.05)]
        made.append(await session.call("0", ToolCall(id="1", name="buy", arguments={}), deadline_s=20))
        await session.close()
        return [result.text for result in made]

    assert asyncio.run(run()) == ["error: timeout", "2"]


def test_a_static_method_is_a_tool_with_all_its_parameters(module: str):
    env = environment(f"{module}:Shop")
    [spec] = [tool for tool in env.tools() if tool.name == "price"]
    assert list(spec.parameters["properties"]) == ["item", "count"]
    assert [result.text for result in calls(env, ("price", {"item": "pear", "count": 2}))] == ["2 pear"]


def test_an_object_with_a_method_score_scores_the_episode(module: str):
    async def run(*tools: str) -> Score | None:
        session: Any = await environment(*tools).open(TASK)
        try:
            if not isinstance(session, Scorer):
                return None
            await session.call("0", ToolCall(id="1", name="add", arguments={"item": "a"}), deadline_s=5)
            return await session.score(None)
        finally:
            await session.close()

    assert asyncio.run(run(module)) is None
    score = asyncio.run(run(f"{module}:Basket"))
    assert (
        score is not None
        and score.value == 0.25
        and "score" not in {t.name for t in environment(f"{module}:Basket").tools()}
    )


def test_a_closed_session_answers_cancelled_and_environments_travel(module: str):
    env = pickle.loads(pickle.dumps(environment(module)))

    async def run() -> ToolResult:
        session = await env.open(TASK)
        await session.close()
        await session.close()
        return await session.call("0", ToolCall(id="1", name="find", arguments={}), deadline_s=1)

    assert asyncio.run(run()).error is ErrorKind.CANCELLED


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("MODULE:fnd", "has no fnd; did you mean find?"),
        ("MODULE_more", "which of its functions? write package.module:function for each (starred, odd, rows, "),
        ("MODULE.py", "there is no module MODULE.py"),
        ("nowhere:f", "there is no module nowhere: is its folder on PYTHONPATH"),
        ("MODULE_more:value", "is int, not a function, a module or a class"),
        ("MODULE_more:starred", "starred: the parameter towns has no name that an agent could give"),
        ("MODULE_more:odd", "odd: its type hints make no JSON schema"),
        ("a b:c", "write package.module:name"),
    ],
)
def test_what_cannot_be_a_tool_is_explained(module: str, name: str, said: str):
    with pytest.raises(ValueError) as raised:
        environment(name.replace("MODULE", module)).tools()
    assert said.replace("MODULE", module) in str(raised.value)


def test_two_tools_of_one_name_are_refused(module: str):
    with pytest.raises(ValueError, match="two tools are called find"):
        environment(f"{module}:find", f"{module}:find").tools()


def test_the_text_of_the_module_is_part_of_the_identity(module: str, tmp_path: Path):
    before = environment(module).digest()
    (tmp_path / f"{module}.py").write_text(SOURCE + "\n# changed\n")
    assert environment(module).digest() != before


def test_tasks_come_from_a_function_and_its_mistakes_are_explained(module: str):
    assert [task.prompt for task in load_tasks(f"{module}_more:rows", "val")] == ["val?"]
    assert file_problem(f"{module}_more:rows") is None
    with pytest.raises(ValueError, match="yields more than 100000 rows"):
        load_tasks(f"{module}_more:endless", "train")
    with pytest.raises(ValueError, match="it failed: OSError: no disk"):
        load_tasks(f"{module}_more:broken", "train")
    with pytest.raises(ValueError, match="did you mean rows"):
        load_tasks(f"{module}_more:row", "train")
    with pytest.raises(ValueError, match=r"envs\.tasks: this environment brings tools but no tasks"):
        environment(module).tasks("train")
