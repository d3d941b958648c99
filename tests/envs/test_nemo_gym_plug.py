"""NeMo-Gym's resources servers: a stand-in with their contract, and the package's own example in its own Python.

PARL_TEST_NEMO_GYM names a Python of at least 3.12 with nemo-gym and a copy of its wheel's folder resources_servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from envs.base import ErrorKind, Score, Scorer, ToolCall, ToolResult
from envs.plugs.nemo_gym import NemoGymConfig, NemoGymEnvironment
from envs.plugs.session import ServerLost
from envs.world.site.server import SocketServer

COUNTERS: dict[str, int] = {}
SCHEMA = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
INCREMENT = {"type": "function", "name": "increment_counter", "parameters": SCHEMA, "strict": True, "description": ""}
VALUE = INCREMENT | {"name": "get_counter_value", "parameters": {"type": "object", "properties": {}, "required": []}}
LAUNCH = """
import sys
from unittest.mock import MagicMock
import uvicorn
from nemo_gym.server_utils import ServerClient
from resources_servers.example_session_state_mgmt.app import (
    StatefulCounterResourcesServer as Server, StatefulCounterResourcesServerConfig as Config)
config = Config(host="127.0.0.1", port=int(sys.argv[1]), entrypoint="", name="counter")
server = Server(config=config, server_client=MagicMock(spec=ServerClient))
uvicorn.run(server.setup_webserver(), host="127.0.0.1", port=int(sys.argv[1]), log_level="error")
"""


async def answer(request: Request) -> Response:
    """The example server of NeMo-Gym that counts, by session."""
    body, session = await request.json(), request.cookies.get("session") or str(uuid.uuid4())
    path = request.url.path
    found: dict[str, Any] = {}
    if path == "/seed_session":
        COUNTERS[session] = body["initial_count"]
    elif path == "/increment_counter":
        if not isinstance(body.get("count"), int):
            return JSONResponse({"detail": "count must be a whole number"}, status_code=422)
        COUNTERS[session] += body["count"]
        found = {"success": True}
    elif path == "/get_counter_value":
        found = {"count": COUNTERS[session]}
    else:
        assert body["response"]["object"] == "response" and body["responses_create_params"]
        found = body | {"reward": float(COUNTERS[session] == body["expected_count"])}
    reply = JSONResponse(found)
    reply.set_cookie("session", session)
    return reply


@pytest.fixture(scope="module")
def stand_in() -> Iterator[str]:
    paths = ("seed_session", "increment_counter", "get_counter_value", "verify")
    server = SocketServer(Starlette(routes=[Route(f"/{path}", answer, methods=["POST"]) for path in paths]))
    yield server.url
    server.close()


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


def test_the_contract_with_a_stand_in(stand_in: str, rows: Path):
    check(stand_in, rows)


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
def test_the_packages_own_example(rows: Path, tmp_path: Path):
    python, _, folder = os.environ.get("PARL_TEST_NEMO_GYM", "").partition(":")
    if not python:
        pytest.skip("PARL_TEST_NEMO_GYM is not set to PYTHON:FOLDER")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "launch.py").write_text(LAUNCH)
    own = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": folder}
    process = subprocess.Popen([python, tmp_path / "launch.py", str(port)], env=own, cwd=folder)
    try:
        until = time.monotonic() + 200
        while time.monotonic() < until and process.poll() is None:
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        check(f"http://127.0.0.1:{port}", rows)
    finally:
        process.kill()
        process.wait()
