"""Hosted search and readers: recorded shapes in one normal form, and a local server with every fault."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from attacks.lying import http, socket_server
from hosted_replies import PARIS, READERS, ROME, SEARCHES

from envs.base import ErrorKind, ToolCall, ToolResult
from envs.plugs.session import offered
from envs.tools import hosted
from envs.tools.environment import ToolsConfig, ToolsEnvironment, ToolsSession
from envs.tools.search import SearchKit
from envs.tools.service import Service

KEY = "k3y-that-nobody-may-see"
NAMES = {"search": hosted.SEARCHES, "fetch": hosted.READERS}
Answer = Callable[[int], bytes]


@pytest.fixture(autouse=True)
def _keys(monkeypatch: pytest.MonkeyPatch):
    for services in NAMES.values():
        for service in services.values():
            if service.key:
                monkeypatch.setenv(service.key, KEY)


@pytest.fixture
def heard() -> list[bytes]:
    return []


@pytest.fixture
def server(heard: list[bytes]) -> Iterator[Callable[[Answer], str]]:
    """A server on loopback whose answers are a function of the number of earlier requests."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(answer: Answer) -> str:
            def send(connection: socket.socket, request: bytes, number: int) -> None:
                heard.append(request)
                connection.sendall(answer(number))

            return stack.enter_context(socket_server(send))

        yield start


async def called(config: dict[str, Any], name: str, deadline_s: float = 10.0, **given: Any) -> ToolResult:
    """One call of a session that is then closed."""
    environment = ToolsEnvironment(ToolsConfig.model_validate(config))
    session = ToolsSession(
        offered(environment.config, environment.tools()), 20_000, [(k, k.open(None)) for k in environment.kits], None
    )
    try:
        return await session.call(
            "0", ToolCall(id=f"functions.{name}:0", name=name, arguments=given), deadline_s=deadline_s
        )
    finally:
        await environment.close()


SHAPES = [(name, reply) for name, replies in SEARCHES.items() for reply in replies]


@pytest.mark.parametrize(("name", "reply"), SHAPES, ids=[f"{name}{at}" for at, (name, _) in enumerate(SHAPES)])
def test_recorded_replies_have_one_form(name: str, reply: dict[str, Any]):
    hits = hosted.SEARCHES[name].hits(reply)
    if "nothing" in json.dumps(reply):
        assert hits == []
        return
    assert [(hit.title, hit.url) for hit in hits] == [("Rome", ROME), ("Paris", PARIS)]
    assert hits[0].snippet.replace(" …", "").startswith("Capital of Italy")
    assert all(hit.score is None or isinstance(hit.score, float) for hit in hits)


@pytest.mark.parametrize("name", READERS)
def test_recorded_pages_have_one_form(name: str):
    assert hosted.READERS[name].text(READERS[name])[1] == "Rome is old."


@pytest.mark.parametrize("name", hosted.SEARCHES)
async def test_each_service_is_asked_as_it_wants(name: str, server: Any, heard: list[bytes]):
    url = server(lambda number: http(SEARCHES[name][0]))
    config = {"search": {"backend": name, "url": url, "results": 5}, "blocked": ["example.org"]}
    result = await called(config, "search", queries=["capitals of Europe"])
    assert result.error is None, result.text
    assert result.text.startswith(f"[1] Rome\n{ROME}\n") and PARIS not in result.text
    service, request = hosted.SEARCHES[name], heard[0].decode()
    if service.key:
        sent = f"Bearer {KEY}" if service.header == hosted.BEARER else KEY
        assert f"{service.header}: {sent}".lower() in request.lower()
    assert request.split()[0] == ("GET" if name in ("brave", "searxng", "jina") else "POST")
    assert "capitals" in request and KEY not in result.text


@pytest.mark.parametrize("name", hosted.READERS)
async def test_each_reader_is_asked_as_it_wants(name: str, server: Any, heard: list[bytes], monkeypatch: Any):
    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    monkeypatch.setattr("envs.tools.guard._resolve", resolve)
    url = server(lambda number: http(READERS[name]))
    config = {"fetch": {"backend": name, "url": url}, "blocked": ["example.org"]}
    result = await called(config, "fetch", url=ROME)
    assert result.error is None and result.text.endswith("Rome is old.")
    assert ROME.encode() in heard[0] and f"Bearer {KEY}".encode() in heard[0]
    for refused in (PARIS, "http://169.254.169.254/", "file:///etc/passwd"):
        result = await called(config, "fetch", url=refused)
        assert result.error is ErrorKind.BAD_ARGS and len(heard) == 1


def search(url: str) -> dict[str, Any]:
    return {"search": {"backend": "serper", "url": url}}


GOOD = http(SEARCHES["serper"][0])
BUSY = http(b"{}", "429 Too Many", "Retry-After: 0")
ECHO = http(f"bad key {KEY}".encode(), "500 No")


@pytest.mark.parametrize(
    ("answer", "error", "machine", "tries"),
    [
        (lambda n: GOOD if n else BUSY, None, False, 2),
        (lambda n: GOOD if n > 1 else ECHO, None, False, 3),
        (lambda n: BUSY, ErrorKind.RATE_LIMITED, False, 3),
        (lambda n: ECHO, ErrorKind.SERVER, False, 3),
        (lambda n: http(b"", "503 Gone"), ErrorKind.SERVER, True, 3),
        (lambda n: http(f"{KEY}".encode(), "401 No"), ErrorKind.SERVER, True, 1),
        (lambda n: http(b"", "302 F", "Location: http://127.0.0.1:9/"), ErrorKind.SERVER, False, 1),
        (lambda n: http(b"{not json"), ErrorKind.SERVER, False, 1),
        (lambda n: http(b"[1, 2]"), ErrorKind.SERVER, False, 1),
        (lambda n: http({"organic": "none"}), ErrorKind.SERVER, False, 1),
        (lambda n: http({"organic": [3]}), ErrorKind.SERVER, False, 1),
        (lambda n: http(b"x" * (9 << 20)), ErrorKind.SERVER, False, 1),
        (lambda n: b"no HTTP at all\r\n\r\n", ErrorKind.SERVER, True, None),
        (lambda n: http({"organic": [{"title": KEY, "link": ROME, "snippet": ""}]}), None, False, 1),
    ],
)
async def test_faults_are_results_and_the_key_is_in_none(
    answer: Answer, error: ErrorKind | None, machine: bool, tries: int | None, server: Any, heard: list[bytes]
):
    result = await called(search(server(answer)), "search", queries=["q"])
    assert (result.error, result.machine) == (error, machine), result.text
    assert KEY not in result.text and (tries is None or len(heard) == tries)


async def test_a_slow_service_ends_at_the_deadline(server: Any):
    def slow(number: int) -> bytes:
        import time

        time.sleep(1.0)
        return GOOD

    result = await called(search(server(slow)), "search", deadline_s=0.2, queries=["q"])
    assert result.error is ErrorKind.TIMEOUT


async def test_a_lost_service_is_the_machines_fault():
    result = await called(search("http://127.0.0.1:9"), "search", queries=["q"])
    assert result.machine and "ConnectError" in result.text


async def test_equal_queries_are_asked_once_and_one_agents_end_ends_no_others(server: Any, heard: list[bytes]):
    service = Service(hosted.SEARCHES["serper"], server(lambda number: GOOD), 4)
    request = hosted.SEARCHES["serper"].asks("q", 3)
    first = asyncio.create_task(service.ask(request, 5))
    others = [asyncio.create_task(service.ask(request, 5)) for _ in range(20)]
    await asyncio.sleep(0)
    first.cancel()
    replies = await asyncio.gather(*others)
    assert all(reply == SEARCHES["serper"][0] for reply in replies) and len(heard) == 1
    await service.ask(hosted.SEARCHES["serper"].asks("another", 3), 5)
    assert len(heard) == 2
    await service.close()


async def test_a_repeated_result_keeps_its_first_place(monkeypatch: pytest.MonkeyPatch):
    hits = [hosted.Hit(title=name, url=f"https://{name}.org", snippet="") for name in "ABCA"]
    server = {"search": {"backend": "serper", "results": 2}}

    async def ask(*_: Any) -> None: ...

    monkeypatch.setattr(Service, "ask", ask)
    kit = ToolsEnvironment(ToolsConfig.model_validate(server)).kits[0]
    assert isinstance(kit, SearchKit)
    kit._kind = dataclasses.replace(kit._kind, hits=lambda reply: hits)
    assert [hit.title for hit in await kit.hits("letters", 1.0)] == ["A", "B"]
    await kit.close()


async def test_a_failure_is_not_kept(server: Any, heard: list[bytes]):
    service = Service(hosted.SEARCHES["serper"], server(lambda number: GOOD if number > 2 else ECHO), 4)
    request = hosted.SEARCHES["serper"].asks("q", 3)
    with pytest.raises(Exception, match="500"):
        await service.ask(request, 5)
    assert (await service.ask(request, 5))["credits"] == 1 and len(heard) == 4
    await service.close()


async def test_several_queries_and_bad_ones(server: Any):
    url = server(lambda number: GOOD)
    result = await called(search(url), "search", queries=["a", "b"])
    assert result.text.startswith("a\n[1] Rome") and "\n\nb\n[1] Rome" in result.text
    for bad in ([], ["a"] * 11, [3], [" "], 7, None, {"q": 1}):
        assert (await called(search(url), "search", queries=bad)).error is ErrorKind.BAD_ARGS


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"search": {"backend": "searxng"}}, "name its address"),
        ({"search": {"backend": "serper", "url": "http://example.com"}}, "plain http"),
        ({"search": {"backend": "serper", "url": "https://u:p@example.com"}}, "without a password"),
        ({"search": {"backend": "serper", "url": "ftp://example.com"}}, "http:// or https://"),
        ({"fetch": {"backend": "crawl4ai"}}, "name its address"),
        ({"fetch": {"extract": "trafilatura"}}, "trafilatura"),
    ],
)
def test_what_is_missing_is_said_before_a_run(config: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "trafilatura", None)
    with pytest.raises(ValueError, match=message):
        list(ToolsEnvironment(ToolsConfig.model_validate(config)).notes())


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TAVILY_API_KEY")
    with pytest.raises(ValueError, match="the environment variable TAVILY_API_KEY is not set"):
        list(ToolsEnvironment(ToolsConfig.model_validate({"search": {"backend": "tavily"}})).notes())
    assert httpx.URL(hosted.SEARCHES["tavily"].url).scheme == "https"
