"""A resources server of NeMo-Gym that counts: the package's own example, or a stand-in with its contract.

PARL_TEST_NEMO_GYM=PYTHON:FOLDER names a Python of at least 3.12 with nemo-gym, and the folder that holds its wheel's
``resources_servers``.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from envs.world.site.server import SocketServer

NAMED = "PARL_TEST_NEMO_GYM"
COUNTERS: dict[str, int] = {}
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


@contextmanager
def stand_in() -> Iterator[str]:
    """The address of the stand-in, while the block runs."""
    paths = ("seed_session", "increment_counter", "get_counter_value", "verify")
    server = SocketServer(Starlette(routes=[Route(f"/{path}", answer, methods=["POST"]) for path in paths]))
    try:
        yield server.url
    finally:
        server.close()


@contextmanager
def packages_own(folder: Path) -> Iterator[str]:
    """The address of the package's example, while the block runs; ``folder`` takes its files."""
    python, _, servers = os.environ[NAMED].partition(":")
    port = free_port()
    (folder / "launch.py").write_text(LAUNCH)
    own = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": servers}
    process = subprocess.Popen([python, folder / "launch.py", str(port)], env=own, cwd=servers)
    with listening(process, port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def listening(process: subprocess.Popen[bytes], port: int) -> Iterator[None]:
    """Waits until ``process`` takes connections; kills it after the block."""
    try:
        until = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < until:
            with socket.socket() as tried:
                if not tried.connect_ex(("127.0.0.1", port)):
                    break
            time.sleep(0.2)
        yield
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
