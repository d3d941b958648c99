"""``parl env check``: what it shows of the examples, and what it says is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from envs.world.site.server import SocketServer
from parl.cli.env_check import example
from parl.cli.main import app

PACKAGES = ("mcp", "gymnasium", "textarena")  # examples that need the package of their name
EXAMPLES = Path(__file__).parents[3] / "examples"
MUTE = """
from envs.base import Environment, Gold, Task, ToolResult, ToolSpec

class Session:
    def tools(self, role): return [ToolSpec(name="say", description="", parameters={})]
    async def call(self, agent_id, call, *, deadline_s): return ToolResult(text="hm")
    async def close(self): ...

class Mute(Environment):
    def tasks(self, split):
        return [Task(key="a", family="f", split=split, prompt="Say hello.", gold=Gold(kind="none"))]
    async def open(self, task, *, seed=0, attempt=0): return Session()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples, which is the working directory."""
    for file in EXAMPLES.iterdir():
        if file.is_file():
            text = file.read_text().replace("../configs/", f"{EXAMPLES.parent}/configs/")
            (tmp_path / file.name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def check(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["env", "check", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def written(folder: Path, **envs: Any) -> str:
    (folder / "mine.yaml").write_text(yaml.safe_dump({"envs": envs}))
    return "mine.yaml"


def test_it_opens_lists_calls_and_scores_without_a_model(folder: Path):
    said = check("functions.yaml")
    for line in (
        "tasks    train: How many people live in Town 0?",
        "tools    orchestrator: larger(one, other)",
        "tools    subagent: population(town), larger(one, other)",
        'call     larger({"one": "test", "other": "test"}) in ',
        "error: KeyError: 'test'",
        "score    after that call, with '10000' as the answer: 1 in [0, 1], solved",
        "missing  nothing",
    ):
        assert line in said
    assert "= 10137" not in said
    config = {"tools": ["town_tools:population"]}
    (folder / "asked.jsonl").write_text('{"prompt": "Town 0?", "answer": "10000"}\n')
    said = check(written(folder, name="functions", tasks="asked.jsonl", config=config))
    assert "the right answer '10000': 1 in [0, 1], solved" in said and "a wrong answer: 0 in [0, 1]" in said
    said = check("functions.yaml", "--call", "population", "--arguments", '{"town": "Town 1"}')
    assert 'population({"town": "Town 1"}) in' in said and "         10137" in said


def test_what_is_missing_is_said_and_is_the_exit_code(folder: Path):
    config = {"tools": ["town_tools:population"]}
    rows = written(folder, name="functions", config=config)
    said = check(rows, code=2)
    assert "envs.tasks: this environment brings tools but no tasks" in said
    (folder / "mute.py").write_text(MUTE)
    said = check(written(folder, name="mute:Mute"), code=2)
    assert "missing  a score: gold.kind = none, and the session has no method score" in said
    (folder / "marks.py").write_text("def score(episode):\n    return {'score': 0.5, 'length': len(episode.answer)}\n")
    with (folder / "mine.yaml").open("a") as file:
        file.write("rewards: {function: marks:score}\n")
    said = check("mine.yaml")
    assert "with 'an answer' as the answer: 0.5 in [0, 1], length 9" in said and "missing  nothing" in said
    said = check(written(folder, name="functions", tasks="town_tools:task", config=config), code=2)
    assert 'envs.tasks = "town_tools:task": town_tools has no task; did you mean tasks?' in said
    retrieve = {"url": "http://127.0.0.1:9/retrieve"}
    said = check(written(folder, name="retrieve", tasks="town_tools:tasks", config=retrieve), code=2)
    assert "envs.config.url = http://127.0.0.1:9/retrieve: ConnectError" in said


def test_a_wrong_call_is_refused_with_what_there_is(folder: Path):
    assert "--call size: there is no such tool; there are: larger, population" in check(
        "functions.yaml", "--call", "size", code=2
    )
    assert "--arguments [1]: must be an object" in check("functions.yaml", "--arguments", "[1]", code=2)
    assert "--arguments {a: no JSON" in check("functions.yaml", "--arguments", "{a", code=2)


@pytest.mark.parametrize(
    "name",
    [
        *("functions", "table", "folder", "retrieve", "gymnasium"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mcp", "textarena")),
    ],
)
def test_every_example_is_complete(folder: Path, name: str):
    """They are the snippets of docs/environments.md."""
    if name in PACKAGES:
        pytest.importorskip(name, reason=f"{name} is not installed")
    more: list[str] = []
    if name == "folder":
        made = CliRunner().invoke(
            app, ["env", "build", "folder", str(EXAMPLES.parent / "docs"), "--to", "corpora/docs"]
        )
        assert made.exit_code == 0, made.output
    if name == "mcp":
        more = [f"envs.config.servers.units.command={sys.executable}"]
    if name == "retrieve":
        import retriever  # pyright: ignore[reportMissingImports]

        server = SocketServer(retriever.app)
        try:
            assert "missing  nothing" in check("retrieve.yaml", f"envs.config.url={server.url}/retrieve")
        finally:
            server.close()
        return
    assert "missing  nothing" in check(f"{name}.yaml", *more)


def test_examples_are_short():
    for file in EXAMPLES.iterdir():
        if file.suffix == ".yaml" or file.stem in ("town_tools", "unit_server", "retriever"):
            assert len(file.read_text().splitlines()) <= 40


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "test"),
        ({"type": "integer", "minimum": 3}, 3),
        ({"type": ["number", "null"]}, 1.0),
        ({"enum": ["a", "b"]}, "a"),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, False),
        ({"type": "array", "items": {"$ref": "#/$defs/one"}, "$defs": {"one": {"const": 5}}}, [5]),
        ({"type": "object", "properties": {"a": {"type": "null"}, "b": {"default": 2}}, "required": ["b"]}, {"b": 2}),
        ({}, "test"),
    ],
)
def test_made_up_arguments_fit_the_schema(schema: dict[str, Any], value: Any):
    assert example(schema, schema) == value


CLOSED = """
from envs.base import Environment, Gold, Task

class Session:
    def tools(self, role): return []
    async def call(self, agent_id, call, *, deadline_s): raise NotImplementedError
    async def close(self): ...

class Closed(Environment):
    def tasks(self, split):
        return [Task(key="a", family="f", split=split, prompt="2 + 2?", gold=Gold(kind="exact", answers=("4",)))]
    async def open(self, task, *, seed=0, attempt=0): return Session()
"""


def test_agents_without_tools_are_no_mistake(folder: Path):
    (folder / "closed.py").write_text(CLOSED)
    mine = written(folder, name="closed:Closed")
    said = check(mine)
    assert "call     none: the agents have no tools" in said and "missing  nothing" in said
    assert "the right answer '4': 1 in [0, 1], solved" in said
    assert "--call size: there is no such tool; there are: none" in check(mine, "--call", "size", code=2)


def test_a_program_is_looked_for_and_its_posted_reward_is_not_missed(folder: Path):
    said = check("harness.yaml", "envs.config.command=[no-such-agent]", "envs.config.call=null", code=2)
    assert "envs.config.command: there is no program no-such-agent" in " ".join(said.split())
    said = check("harness.yaml", "envs.config.command=[python, x.py]", "envs.config.call=null")
    assert "call     none" in said and "score    with '10000' as the answer: 1 in [0, 1]" in said
    (folder / "asked.jsonl").write_text('{"prompt": "Town 0?", "gold": {"kind": "none"}}\n')
    config = {"command": ["sh", "x.sh"]}
    said = check(written(folder, name="harness", tasks="asked.jsonl", config=config))
    assert "score    what the program posts" in said and "missing  nothing" in said
