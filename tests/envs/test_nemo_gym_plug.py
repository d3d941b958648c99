"""NeMo-Gym's resources servers: a stand-in with their contract, and the package's own example in its own Python."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from counting import NAMED, packages_own, stand_in

from envs.base import ErrorKind, Score, Scorer, ToolCall, ToolResult
from envs.plugs.nemo_gym import NemoGymConfig, NemoGymEnvironment
from envs.plugs.session import ServerLost

SCHEMA = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
INCREMENT = {"type": "function", "name": "increment_counter", "parameters": SCHEMA, "strict": True, "description": ""}
VALUE = INCREMENT | {"name": "get_counter_value", "parameters": {"type": "object", "properties": {}, "required": []}}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with stand_in() as url:
        yield url


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    made = []
    for n in range(12):
        asked = [{"role": "user", "content": f"add {n} then add 2 then get the count"}]
        params = {"input": asked, "tools": [INCREMENT, VALUE]}
        made.append({"responses_create_params": params, "expected_count": 5 + n, "initial_count": 3})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, made)))
    return tmp_path / "rows.jsonl"


def play(env: NemoGymEnvironment, number: int, *wanted: tuple[str, dict[str, Any]]) -> tuple[list[ToolResult], Score]:
    async def run() -> tuple[list[ToolResult], Score]:
        task = list(env.tasks("train"))[number]
        session: Any = await env.open(task)
        assert isinstance(session, Scorer)
        calls = [ToolCall(id=f"c{i}", name=name, arguments=given) for i, (name, given) in enumerate(wanted)]
        results = [await session.call("0", call, deadline_s=30) for call in calls]
        turns = [SimpleNamespace(content="", calls=calls, results=results)]
        turns.append(SimpleNamespace(content="done", calls=[], results=[]))
        score = await session.score(SimpleNamespace(answer="done", task=task, traces=[SimpleNamespace(turns=turns)]))
        await session.close()
        return results, score

    return asyncio.run(run())


def check(url: str, rows: Path) -> None:
    env = NemoGymEnvironment(NemoGymConfig(url=url, rows=rows))
    assert [len(list(env.tasks(split))) for split in ("train", "val", "test")] == [10, 1, 1]
    assert next(iter(env.tasks("val"))).prompt == "add 8 then add 2 then get the count"
    assert [tool.name for tool in env.tools()] == ["increment_counter", "get_counter_value"]
    add, two, get = ("increment_counter", {"count": 4}), ("increment_counter", {"count": 2}), ("get_counter_value", {})
    results, score = play(env, 4, add, two, get)
    assert json.loads(results[2].text) == {"count": 9} and score.value == 1.0 and score.solved
    results, score = play(env, 4, ("increment_counter", {"count": "x"}), two, get)
    assert results[0].error is ErrorKind.BAD_ARGS and not results[0].machine
    assert json.loads(results[2].text) == {"count": 5} and score.value == 0.0  # a session of its own


def test_a_row_may_hold_every_line_end_of_unicode(tmp_path: Path):
    asked = "add\u2028one\x85then\u2029get"
    row = {"responses_create_params": {"input": [{"role": "user", "content": asked}], "tools": [VALUE]}}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    env = NemoGymEnvironment(NemoGymConfig(url="http://127.0.0.1:9", rows=tmp_path / "rows.jsonl"))
    assert [task.prompt for task in env.tasks("train")] == [asked]


def test_the_contract_with_a_stand_in(server: str, rows: Path):
    check(server, rows)


def test_a_missing_server_is_the_machines_fault_and_bad_rows_are_named(rows: Path, tmp_path: Path):
    env = NemoGymEnvironment(NemoGymConfig(url="http://127.0.0.1:9", rows=rows))
    with pytest.raises(ServerLost, match="ConnectError"):
        play(env, 0)
    (tmp_path / "bad.jsonl").write_text('{"responses_create_params": {"input": "a"}}\n{"prompt": "a"}\n')
    with pytest.raises(
        ValueError, match=r"bad\.jsonl: line 2: no row of NeMo-Gym \(KeyError: 'responses_create_params'"
    ):
        list(NemoGymEnvironment(NemoGymConfig(url="http://x", rows=tmp_path / "bad.jsonl")).tasks("train"))


@pytest.mark.slow
@pytest.mark.skipif(NAMED not in os.environ, reason=f"{NAMED} is not set to PYTHON:FOLDER (tests/examples/counting.py)")
def test_the_packages_own_example(rows: Path, tmp_path: Path):
    with packages_own(tmp_path) as url:
        check(url, rows)
