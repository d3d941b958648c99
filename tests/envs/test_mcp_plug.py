"""MCP servers as tools, against the real package: over stdio, HTTP and in process, with servers that fail and die."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from envs.base import ErrorKind, Gold, Task, ToolCall, ToolResult
from envs.plugs.mcp import McpConfig, McpEnvironment

pytest.importorskip("mcp", reason="the package mcp is not installed (extra mcp)")
TASK = Task(key="k", family="user", split="train", prompt="?", gold=Gold(kind="exact", answers=("1",)))
SERVER = '''
import asyncio, os, sys
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("try")
count = 0

@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b

@server.tool()
def more() -> int:
    """Count."""
    global count
    count += 1
    return count

@server.tool()
async def wait(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "waited"

@server.tool()
def fail(text: str) -> str:
    """Raise: MCP keeps the text of other exceptions to itself."""
    raise ToolError(text)

@server.tool()
def variable(name: str) -> str:
    """A variable."""
    return os.environ.get(name, "none")

@server.tool()
def die(once: str) -> str:
    """End the process, unless the file is there already."""
    if once and os.path.exists(once):
        return "alive"
    if once:
        open(once, "w").close()
    print("out of memory", file=sys.stderr, flush=True)
    os._exit(3)

if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run()
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"their_server_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SERVER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.fixture
def stdio(module: str, tmp_path: Path) -> dict[str, Any]:
    return {"command": sys.executable, "args": [str(tmp_path / f"{module}.py")]}


def environment(**servers: dict[str, Any]) -> McpEnvironment:
    return McpEnvironment(McpConfig.model_validate({"servers": servers}))


async def calls(
    env: McpEnvironment, *wanted: tuple[str, dict[str, Any]], deadline_s: float = 30.0, together: bool = False
) -> list[ToolResult]:
    session = await env.open(TASK)
    made = [ToolCall(id=str(i), name=name, arguments=given) for i, (name, given) in enumerate(wanted)]
    try:
        if together:
            running = (session.call("0", call, deadline_s=deadline_s) for call in made)
            return list(await asyncio.gather(*running))
        return [await session.call("0", call, deadline_s=deadline_s) for call in made]
    finally:
        await session.close()


def run(env: McpEnvironment, *wanted: tuple[str, dict[str, Any]], **more: Any) -> list[ToolResult]:
    async def all_of_it() -> list[ToolResult]:
        try:
            return await calls(env, *wanted, **more)
        finally:
            await env.close()

    return asyncio.run(all_of_it())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve(folder: Path, module: str, port: int) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, folder / f"{module}.py", str(port)], stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    raise TimeoutError


@pytest.fixture
def http(module: str, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    process = serve(tmp_path, module, port)
    yield f"http://127.0.0.1:{port}/mcp", process
    process.kill()
    process.wait()


@pytest.mark.parametrize(
    "transport", ["module", pytest.param("stdio", marks=pytest.mark.slow), pytest.param("http", marks=pytest.mark.slow)]
)
def test_one_meaning_over_every_transport(transport: str, request: pytest.FixtureRequest, module: str):
    if transport == "http":
        server = {"url": request.getfixturevalue("http")[0]}
    else:
        server = request.getfixturevalue("stdio") if transport == "stdio" else {"module": f"{module}:server"}
    env = pickle.loads(pickle.dumps(environment(it=server)))
    [spec] = [tool for tool in env.tools() if tool.name == "add"]
    assert spec.description == "Add two numbers." and set(spec.parameters["properties"]) == {"a", "b"}
    good, wrong, failed, unknown, late, after = run(
        env,
        *(("add", {"a": 2, "b": 3}), ("add", {"a": "x"}), ("fail", {"text": "lost " * 200}), ("nope", {})),
        *(("wait", {"seconds": 60}), ("add", {"a": 1, "b": 1})),
        deadline_s=2.0,
    )
    assert (good.text, good.error, after.text) == ("5", None, "2") and good.latency_s > 0
    assert wrong.error in (ErrorKind.SERVER, ErrorKind.BAD_ARGS) and not wrong.machine and "a" in wrong.text
    assert failed.error is ErrorKind.SERVER and "lost" in failed.text and len(failed.text) < 330
    assert unknown.error is ErrorKind.UNKNOWN_TOOL and late.error is ErrorKind.TIMEOUT and not late.machine


@pytest.mark.slow
def test_calls_of_many_agents_share_a_connection_and_do_not_wait_for_each_other(stdio: dict[str, Any]):
    began = time.monotonic()
    many = run(environment(it=stdio | {"stateless": True}), *[("wait", {"seconds": 1.0})] * 40, together=True)
    assert {result.text for result in many} == {"waited"} and time.monotonic() - began < 25


@pytest.mark.slow
def test_a_server_with_state_is_started_for_each_episode_and_one_without_once(stdio: dict[str, Any]):
    def counts(env: McpEnvironment) -> list[str]:
        async def three() -> list[str]:
            try:
                return [(await calls(env, ("more", {})))[0].text for _ in range(3)]
            finally:
                await env.close()

        return asyncio.run(three())

    assert counts(environment(it=stdio)) == ["1", "1", "1"]
    assert counts(environment(it=stdio | {"stateless": True})) == ["1", "2", "3"]
    assert environment(it=stdio | {"stateless": True}).stateless and not environment(it=stdio).stateless


@pytest.mark.slow
def test_a_dead_server_is_the_machines_fault_and_says_its_last_words(stdio: dict[str, Any]):
    [dead, after] = run(environment(it=stdio), ("die", {"once": ""}), ("add", {"a": 1, "b": 2}))
    assert dead.machine and dead.error is ErrorKind.SERVER and "server it (" in dead.text
    assert "out of memory" in dead.text
    assert not after.machine and after.text == "3"  # it is connected again


@pytest.mark.slow
def test_a_stateless_server_that_died_is_started_again_and_asked_once_more(stdio: dict[str, Any], tmp_path: Path):
    env = environment(it=stdio | {"stateless": True})
    once, always = run(env, ("die", {"once": str(tmp_path / "seen")}), ("die", {"once": ""}))
    assert once.text == "alive" and not once.machine
    assert always.machine


@pytest.mark.slow
def test_a_server_over_http_that_goes_away_and_comes_back(
    http: tuple[str, subprocess.Popen[bytes]], module: str, tmp_path: Path
):
    url, process = http
    env = environment(it={"url": url, "stateless": True})

    async def story() -> list[ToolResult]:
        said = await calls(env, ("add", {"a": 1, "b": 1}))
        session = await env.open(TASK)
        call = ToolCall(id="1", name="add", arguments={"a": 1, "b": 1})
        process.kill()
        process.wait()
        said.append(await session.call("0", call, deadline_s=30))
        again = await asyncio.to_thread(serve, tmp_path, module, int(url.split(":")[2].split("/")[0]))
        try:
            said.append(await session.call("0", call, deadline_s=30))
        finally:
            await session.close()
            await env.close()
            again.kill()
            again.wait()
        return said

    before, gone, after = asyncio.run(story())
    assert (before.text, after.text) == ("2", "2") and gone.machine


@pytest.mark.slow
def test_allow_lists_and_names_that_two_servers_share(stdio: dict[str, Any]):
    env = environment(one=stdio | {"tools": ["add", "more"]}, two=stdio | {"tools": ["add"]})
    assert [tool.name for tool in env.tools()] == ["one_add", "more", "two_add"]
    first, second, refused = run(
        env, ("one_add", {"a": 1, "b": 1}), ("two_add", {"a": 2, "b": 2}), ("fail", {"text": ""})
    )
    assert (first.text, second.text, refused.error) == ("2", "4", ErrorKind.UNKNOWN_TOOL)
    with pytest.raises(ValueError, match=r'envs\.config\.servers\.it\.tools: there is no tool "ad"; there are: add, '):
        environment(it=stdio | {"tools": ["ad"]}).tools()


@pytest.mark.slow
def test_a_variable_of_the_shell_reaches_the_server_and_not_the_configuration(
    stdio: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("THEIR_KEY", "secret")
    env = environment(it=stdio | {"env": {"KEY": "$THEIR_KEY"}})
    key, other = run(env, ("variable", {"name": "KEY"}), ("variable", {"name": "THEIR_KEY"}))
    assert (key.text, other.text) == ("secret", "none") and "secret" not in env.config.model_dump_json()
    monkeypatch.delenv("THEIR_KEY")
    with pytest.raises(ValueError, match="the variable THEIR_KEY is not set in this shell"):
        environment(it=stdio | {"env": {"OTHER": "$THEIR_KEY"}}).tools()


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({"command": "/nowhere/server"}, "server it (/nowhere/server): FileNotFoundError"),
        ({"command": sys.executable, "args": ["-c", "raise SystemExit('bad option')"]}, "it wrote: bad option"),
        ({"url": "http://127.0.0.1:9/mcp"}, "server it (http://127.0.0.1:9/mcp): ConnectError"),
        ({"module": "nowhere:server"}, "there is no module nowhere"),
    ],
)
def test_a_server_that_does_not_start_is_a_mistake_of_the_configuration(server: dict[str, Any], said: str):
    with pytest.raises(ValueError) as raised:
        environment(it=server).tools()
    assert "envs.config.servers" in str(raised.value) and said in str(raised.value)


@pytest.mark.parametrize(
    ("server", "said"),
    [
        ({}, "exactly one of command, url and module, not none"),
        ({"command": "a", "url": "http://x"}, "not command and url"),
        ({"url": "localhost:80"}, "must begin with http"),
        ({"command": "uvx mcp-server-time"}, "write only the program, and its arguments in args"),
    ],
)
def test_a_wrong_stanza_is_explained(server: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        environment(it=server)


NPM = Path(os.environ.get("PARL_TEST_NPM", "/nowhere"))  # a folder with node_modules/.bin


@pytest.mark.slow
def test_servers_that_others_wrote(tmp_path: Path):
    """mcp-server-time, -git and -fetch from PyPI, server-everything and -filesystem from npm, as far as installed."""
    tried = 0
    if program := shutil.which("mcp-server-time"):
        good, bad, wrong = run(
            environment(it={"command": program, "args": ["--local-timezone=UTC"], "stateless": True}),
            ("convert_time", {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"}),
            ("get_current_time", {"timezone": "Atlantis/Town"}),
            ("get_current_time", {}),
        )
        assert "21:00" in good.text and good.error is None
        assert "Atlantis" in bad.text and bad.error is wrong.error is ErrorKind.SERVER
        tried += 1
    if program := shutil.which("mcp-server-git"):
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
        [status] = run(environment(it={"command": program}), ("git_status", {"repo_path": str(tmp_path)}))
        assert "branch" in status.text.lower()
        tried += 1
    if program := shutil.which("mcp-server-fetch"):
        [refused] = run(
            environment(it={"command": program, "args": ["--ignore-robots-txt"]}),
            ("fetch", {"url": "http://127.0.0.1:9/"}),
        )
        assert refused.error is not None and not refused.machine
        tried += 1
    if (NPM / "node_modules/.bin/mcp-server-everything").exists():
        echo, wrong, picture = run(
            environment(it={"command": str(NPM / "node_modules/.bin/mcp-server-everything"), "stateless": True}),
            *(("echo", {"message": "hi"}), ("echo", {}), ("get-tiny-image", {})),
        )
        assert echo.text == "Echo: hi" and wrong.error is ErrorKind.SERVER and len(picture.images) == 1
        tried += 1
    if (NPM / "node_modules/.bin/mcp-server-filesystem").exists():
        (tmp_path / "note.txt").write_text("hello")
        server = {"command": str(NPM / "node_modules/.bin/mcp-server-filesystem"), "args": [str(tmp_path)]}
        read, outside = run(
            environment(it=server),
            ("read_text_file", {"path": str(tmp_path / "note.txt")}),
            ("read_text_file", {"path": "/etc/passwd"}),
        )
        assert read.text == "hello" and outside.error is ErrorKind.SERVER and "denied" in outside.text
        tried += 1
    if not tried:
        pytest.skip("none of mcp-server-time, -git, -fetch is on PATH, and PARL_TEST_NPM names no folder")
