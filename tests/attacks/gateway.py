"""Requests that the gateway must refuse or end: hosts, origins, keys, headers, paths, sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from attacks.base import Attack

AREA = "gateway"
JSON = "application/json"
KEY = "correct-horse-battery"

HOSTS = (
    *("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost"),
    *("127.0.0.1@evil.example", "evil.example#localhost", "localhost:8000:8000", "localhost, evil.example", ""),
    *("0.0.0.0:8000", "10.0.0.1:8000", "[::]:8000", "[::ffff:10.0.0.1]", "127.1", "0x7f000001", "2130706433"),
    *(
        "localhost..",
        "127.0.0.1..",
        "0177.0.0.1",
        "127.000.000.001",
        "evil.localhost",
        "127.0.0.1.nip.io",
        "[::1%25lo]",
    ),
    *("localhost?", "localhost/", "::1", "[]", "[...]", ".", "-", "localhost.localdomain", "user@localhost", ":8000"),
    *("localhost:99999", "localhost:-1", "[::1", "localhost/..", "gateway.localhost.evil.example", "xn--lcalhost-41a"),
)
GOOD_HOSTS = (
    "localhost",
    "LOCALHOST:8000",
    "localhost.:8000",
    "localhost:",
    "[0:0:0:0:0:0:0:1]",
    "127.0.0.1",
    "127.8.9.1:1",
    "[::1]:8000",
    "policy.lan",
)
ORIGINS = (
    *("https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1:8000", "file://", "", "https://"),
    *("https://app.example.evil.example", "https://app.example:444", "http://app.example", "chrome-extension://abc"),
)
TYPES = (
    *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json", "*/*", ""),
    *(
        "application/json; charset=utf-16",
        "application/jsonp",
        "application/json, text/plain",
        "text/plain; application/json",
    ),
    *("application/json\x0b", "application/json;", "application/json; charset=utf-8; charset=latin-1"),
)
KEYS = (
    *("", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer {KEY[:-1]}"),
    *(f"Bearer {KEY.upper()}", f"Bearer {KEY} {KEY}", "Bearer none", f"Bearer, {KEY}"),
)
PATHS = (
    *("/v1/chat/completions/", "/v1//chat/completions", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/%00"),
    *("/v1/models/%ff", "/v1/parl/episodes/%ff/reward", "/v1/parl/episodes//reward", "/v1/parl/episodes/%0d%0a/reward"),
    *("/v1/parl/episodes/" + "a" * 20_000 + "/reward", "/docs", "/openapi.json", "/http://evil.example/v1/models"),
)
TWICE = (
    *(("x-parl-episode", "a", "b"), ("x-parl-task", "a", "a"), ("sec-fetch-site", "none", "cross-site")),
    ("content-encoding", "identity", "gzip"),
)
METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "BREW", "get")


def cases() -> Iterator[Attack]:
    """All cases."""
    tries: dict[str, Any] = {
        **{f"host {host!r}": partial(_foreign_host, host=host) for host in HOSTS},
        **{f"origin {origin!r}": partial(_foreign_origin, origin=origin) for origin in ORIGINS},
        **{f"content type {kind!r}": partial(_content_type, kind=kind) for kind in TYPES},
        **{f"key {header!r}": partial(_wrong_key, header=header) for header in KEYS},
        **{f"path {path[:60]!r}": partial(_path, path=path) for path in PATHS},
        **{f"method {method}": partial(_method, method=method) for method in METHODS},
        "no host": partial(_headers, status=421, field="host", headers=[]),
        "two hosts": partial(
            _headers, status=421, field="host", headers=[("host", "localhost"), ("host", "evil.example")]
        ),
        "two content types": partial(
            _headers, status=415, field="content-type", headers=[_LOCAL, ("content-type", JSON), ("content-type", JSON)]
        ),
        "no content type": partial(_headers, status=415, field="content-type", headers=[_LOCAL]),
        "two origins": partial(
            _headers, status=403, field="origin", headers=[_LOCAL, _JSON, _APP, _APP], origins=["https://app.example"]
        ),
        "a page of another site": partial(
            _headers, status=403, field="sec-fetch-site", headers=[_LOCAL, _JSON, ("sec-fetch-site", "cross-site")]
        ),
        **{
            f"two {name}": partial(_headers, status=400, field=name, headers=[_LOCAL, _JSON, (name, one), (name, two)])
            for name, one, two in TWICE
        },
        "100 kB of headers": partial(
            _headers, status=431, field=None, headers=[_LOCAL, _JSON, *[(f"x-{i}", "a" * 1000) for i in range(100)]]
        ),
        "gzip": partial(
            _headers, status=415, field="content-encoding", headers=[_LOCAL, _JSON, ("content-encoding", "gzip")]
        ),
        "an episode's header in Latin-1": partial(
            _headers, status=400, field="x-parl-episode", headers=[_LOCAL, _JSON, ("x-parl-episode", b"\xe9")]
        ),
        "an episode's header that climbs": partial(
            _headers, status=400, field="x-parl-episode", headers=[_LOCAL, _JSON, ("x-parl-episode", "../x")]
        ),
        "good hosts are served": _good_hosts,
        "an allowed page is served": _allowed_origin,
        "two keys": _two_keys,
        "a body beyond the cap, announced": _long_body,
        "a body beyond the cap, in chunks": _long_chunks,
        "a length of 10^30": _absurd_length,
        **{name: partial(_on_socket, act=act) for name, act in SOCKETS.items()},
    }
    for name, run in tries.items():
        yield Attack(area=AREA, name=name, run=run)


_LOCAL, _JSON, _APP = ("host", "localhost"), ("content-type", JSON), ("origin", "https://app.example")


def _with(folder: Path, act: Any, **options: Any) -> None:
    from gateway_client import gateway

    async def attack() -> None:
        async with gateway(folder, **options) as caller:
            await act(caller)
            assert not caller.gateway.recorder.open

    asyncio.run(attack())


def _foreign_host(folder: Path, *, host: str) -> None:
    from gateway_client import BODY, CHAT

    async def act(caller: Any) -> None:
        await caller.refused(421, "host", CHAT, BODY, headers={"host": host})
        await caller.refused(421, "host", "/v1/models", method="GET", headers={"host": host})
        await caller.alive()

    _with(folder, act)


def _good_hosts(folder: Path) -> None:
    from rollouts.gateway.guard import Access

    async def act(caller: Any) -> None:
        for host in GOOD_HOSTS:
            assert (await caller.send("/v1/models", method="GET", headers={"host": host})).status_code == 200, host

    _with(folder, act, access=Access(hosts=("policy.lan",)))


def _foreign_origin(folder: Path, *, origin: str) -> None:
    from gateway_client import BODY, CHAT

    from rollouts.gateway.guard import Access

    asked = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}

    async def act(caller: Any) -> None:
        for method, body, more in (("POST", BODY, {}), ("OPTIONS", None, asked), ("GET", None, {})):
            sent = {"origin": origin, **more}
            answer = await caller.send(CHAT, body, method=method, headers=sent)
            assert answer.status_code == 403 and answer.json()["error"]["param"] == "origin", answer.text
            assert not [name for name in answer.headers if name.startswith("access-control-")]

    _with(folder, act, access=Access(origins=("https://app.example",)))


def _allowed_origin(folder: Path) -> None:
    from gateway_client import BODY, CHAT

    from rollouts.gateway.guard import Access

    page, key = {"origin": "https://app.example", "sec-fetch-site": "cross-site"}, {"authorization": f"Bearer {KEY}"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}

    async def act(caller: Any) -> None:
        preflight = await caller.send(CHAT, method="OPTIONS", headers={**page, **asked})
        assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == page["origin"]
        assert (await caller.send(CHAT, BODY, headers=page)).status_code == 401  # a page needs the key too
        answer = await caller.send(CHAT, {**BODY, "user": "a"}, headers={**page, **key})
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == page["origin"]
        await caller.send("/v1/parl/episodes/a/reward", {"reward": 1}, headers=key)

    _with(folder, act, access=Access(origins=("https://app.example",), key=KEY))


def _content_type(folder: Path, *, kind: str) -> None:
    from gateway_client import BODY, CHAT

    async def act(caller: Any) -> None:
        await caller.refused(415, "content-type", CHAT, json.dumps(BODY).encode(), headers={"content-type": kind})
        await caller.alive()

    _with(folder, act)


def _wrong_key(folder: Path, *, header: str) -> None:
    from gateway_client import BODY, CHAT

    from rollouts.gateway.guard import Access

    async def act(caller: Any) -> None:
        for path, body, method in ((CHAT, BODY, "POST"), ("/v1/models", None, "GET"), ("/nowhere", None, "GET")):
            error = await caller.refused(401, None, path, body, method=method, headers={"authorization": header})
            assert error["code"] == "invalid_api_key" and KEY not in error["message"]
        assert (await caller.send("/health", method="GET")).status_code == 200

    _with(folder, act, access=Access(key=KEY))


def _two_keys(folder: Path) -> None:
    from rollouts.gateway.guard import Access

    async def act(caller: Any) -> None:
        headers = [("authorization", f"Bearer {KEY}"), ("authorization", "Bearer other")]
        await caller.refused(401, None, "/v1/models", method="GET", headers=headers)
        good = {"authorization": f"bearer {KEY}"}
        assert (await caller.send("/v1/models", method="GET", headers=good)).status_code == 200

    _with(folder, act, access=Access(key=KEY))


def _headers(
    folder: Path, *, headers: list[tuple[str, Any]], status: int, field: str | None, origins: Any = ()
) -> None:
    from gateway_client import BODY, CHAT, asgi_post

    from rollouts.gateway.guard import Access

    async def act(caller: Any) -> None:
        answer, error = await asgi_post(caller.gateway, CHAT, json.dumps(BODY).encode(), headers)
        assert answer == status and error["error"]["param"] == field, (answer, error)
        await caller.alive()

    _with(folder, act, access=Access(origins=tuple(origins)))


def _path(folder: Path, *, path: str) -> None:
    async def act(caller: Any) -> None:
        for method, body in (("GET", None), ("POST", {"reward": 1})):
            answer = await caller.send(path, body, method=method)
            assert answer.status_code in (400, 404, 405), answer.text
        await caller.alive()

    _with(folder, act)


def _method(folder: Path, *, method: str) -> None:
    from gateway_client import CHAT

    async def act(caller: Any) -> None:
        assert (await caller.send(CHAT, method=method)).status_code == 405
        await caller.alive()

    _with(folder, act)


def _long_body(folder: Path) -> None:
    from gateway_client import CHAT

    async def act(caller: Any) -> None:
        await caller.refused(413, "body", CHAT, b'{"user": "' + b"a" * 2000 + b'"}')
        await caller.alive()

    _with(folder, act, body_bytes=1000)


def _long_chunks(folder: Path) -> None:
    from gateway_client import CHAT

    sent = []

    async def endless() -> Any:
        for _ in range(10_000):
            sent.append(1)
            yield b" " * 100

    async def act(caller: Any) -> None:
        headers = {"content-type": JSON}
        answer = await caller.send(CHAT, method="POST", content=endless(), headers=headers)
        assert answer.status_code == 413 and answer.json()["error"]["param"] == "body"
        assert len(sent) <= 12, "it read on after the cap"
        await caller.alive()

    _with(folder, act, body_bytes=1000)


def _absurd_length(folder: Path) -> None:
    from gateway_client import BODY, CHAT, asgi_post

    async def act(caller: Any) -> None:
        headers = [_LOCAL, _JSON, ("content-length", "1" + "0" * 30)]
        answer, _ = await asgi_post(caller.gateway, CHAT, json.dumps(BODY).encode(), headers)
        assert answer == 413

    _with(folder, act)


def _on_socket(folder: Path, *, act: Any) -> None:
    from gateway_client import on_socket

    stops = act is _stopped
    with on_socket(folder, **({"body_s": 60, "head_s": 60, "finish_s": 1} if stops else {})) as server:
        act(server)
        if not stops:
            server.alive()


def _silence(server: Any) -> None:
    """Connect without sending anything."""
    began = time.monotonic()
    with server.connect() as one:
        assert one.recv(1) == b""
    assert time.monotonic() - began < 5


def _slow_head(server: Any) -> None:
    """One header every tenth of a second, for ever."""
    began = time.monotonic()
    with server.connect() as one:
        one.sendall(b"GET /health HTTP/1.1\r\n")
        for i in range(100):
            try:
                one.sendall(f"x-{i}: a\r\n".encode())
            except (BrokenPipeError, ConnectionResetError):
                break
            time.sleep(0.1)
    assert time.monotonic() - began < 5


def _slow_head_after_an_answer(server: Any) -> None:
    """A valid request, then half of one."""
    with server.connect() as one:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in one.recv(65536)
        one.sendall(b"GET /hea")
        time.sleep(0.1)
        one.sendall(b"lth HTTP/1.1\r\n")
        _ended(one)


def _slow_body(server: Any) -> None:
    """Announce a body and send a byte at a time."""
    with server.connect() as one:
        one.sendall(_head("Content-Length: 1000"))
        for _ in range(3):
            one.sendall(b" ")
            time.sleep(0.05)
        said = _ended(one)
        assert said.startswith(b"HTTP/1.1 408") and b'"param":"body"' in said, said


def _half_a_body(server: Any) -> None:
    """A body shorter than its length, then silence."""
    with server.connect() as one:
        one.sendall(_head("Content-Length: 1000") + b"{}")
        assert _ended(one).startswith(b"HTTP/1.1 408")


def _endless_body_of_a_get(server: Any) -> None:
    """An endless body that is never read."""
    with server.connect() as one:
        one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        began = time.monotonic()
        try:
            while time.monotonic() - began < 8:
                one.sendall(b"1\r\na\r\n")
                time.sleep(0.05)
        except (BrokenPipeError, ConnectionResetError):
            return
    raise AssertionError("the connection was kept")


def _early_end(server: Any) -> None:
    """Disconnect in the middle of a body."""
    with server.connect() as one:
        one.sendall(_head("Content-Length: 1000") + b'{"messages"')
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end


def _no_http(server: Any) -> None:
    """A TLS hello, and noise."""
    for noise in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"\r\n" * 9,
    ):
        said = server.say(noise + b"\r\n\r\n")
        assert not said or (said.startswith(b"HTTP/1.1 400") and b'"error"' in said), said


def _smuggled(server: Any) -> None:
    """Two lengths, a length and chunks, invalid lengths."""
    for lines in (
        ("Content-Length: 5", "Content-Length: 6"),
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Content-Length: -5",),
        ("Content-Length: 5, 6",),
        ("Content-Length: five",),
        ("Transfer-Encoding: gzip, chunked",),
        ("Transfer-Encoding: identity",),
        ("Transfer-Encoding : chunked",),
    ):
        said = server.say(_head(*lines) + b"0\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert said.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501")) or not said, (lines, said)
        assert b'"object":"list"' not in said, (lines, said)


def _broken_chunks(server: Any) -> None:
    """Chunks with invalid lengths, also after an early answer."""
    for path in ("/v1/chat/completions", "/health"):
        said = server.say(_head("Transfer-Encoding: chunked", path=path) + b"zz\r\nabc\r\n")
        assert said.startswith(b"HTTP/1.1 4"), said


def _long_head(server: Any) -> None:
    """A header of a megabyte, and one line of it."""
    for raw in (b"GET /health HTTP/1.1\r\nHost: localhost\r\nx: " + b"a" * 1_000_000, b"GET /" + b"a" * 1_000_000):
        try:
            said = server.say(raw)
        except (BrokenPipeError, ConnectionResetError):
            continue
        assert not said or said.startswith(b"HTTP/1.1 4"), said[:100]


def _pipelined(server: Any) -> None:
    """A hundred requests before the first answer is read: all are answered, in order."""
    one = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
    said = server.say(one * 100 + b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert said.count(b"HTTP/1.1 200 OK") == 101 and said.index(b'"status"') > said.rindex(b'"object":"list"')


def _never_reads(server: Any) -> None:
    """Request a long stream and never read it."""
    server.gateway.engine.text = "word " * 100
    with server.connect() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        body = b'{"messages": [{"role": "user", "content": "q"}], "stream": true, "logprobs": true}'
        request = _head(f"Content-Length: {len(body)}") + body
        one.settimeout(1)
        with suppress(OSError):  # answers of some 100 kB each pile up in the socket, until no more goes in
            one.sendall(request * 100)
        give_up = time.monotonic() + 5
        while not any(held.flow.write_paused for held in _connections(server)):
            assert time.monotonic() < give_up, "its answers never piled up"
            time.sleep(0.01)
        while _connections(server):
            assert time.monotonic() < give_up, "the connection was kept"
            time.sleep(0.05)


def _websocket(server: Any) -> None:
    """Request another protocol."""
    upgrade = ("Upgrade: websocket", "Connection: Upgrade, close", "Sec-WebSocket-Key: a", "Sec-WebSocket-Version: 13")
    assert server.request("GET", "/v1/models", b"", *upgrade).startswith(b"HTTP/1.1 200")


def _rebound(server: Any) -> None:
    """An absolute target in the request line, with another Host."""
    said = server.say(b"GET http://evil.example/v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 421"), said
    assert server.say(b"GET /v1/models HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 421")


def _a_crowd(server: Any) -> None:
    """Three hundred silent connections: others are served meanwhile, and the silent ones are closed."""
    crowd = [server.connect() for _ in range(300)]
    server.alive()
    for one in crowd:
        assert one.recv(1) == b""
        one.close()


def _stopped(server: Any) -> None:
    """Shutdown with half a body, half a head and an endless answer pending: everything recorded is stored."""

    async def never(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    body = b'{"messages": [{"role": "user", "content": "q"}], "user": "kept"}'
    assert server.request("POST", "/v1/chat/completions", body).startswith(b"HTTP/1.1 200")
    server.gateway.engine.generate = never
    with server.connect() as half, server.connect() as head, server.connect() as waits:
        half.sendall(_head("Content-Length: 1000") + b"{")
        head.sendall(b"GET /hea")
        waits.sendall(_head(f"Content-Length: {len(body)}") + body)
        while not any(one.busy for one in server.gateway.recorder.open.values()):
            time.sleep(0.01)
        began = time.monotonic()
        server.server.should_exit = True
        for one in (half, waits):
            assert b'"the gateway is stopping"' in _ended(one)
        while server.gateway.recorder.open:
            assert time.monotonic() - began < 5, "it still waits"
            time.sleep(0.05)


def _head(*lines: str, path: str = "/v1/chat/completions") -> bytes:
    start = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *lines]
    return "\r\n".join([*start, "", ""]).encode()


def _ended(one: socket.socket) -> bytes:
    from gateway_client import rest

    began = time.monotonic()
    said = rest(one)
    assert time.monotonic() - began < 5, "the connection was kept too long"
    return said


def _connections(server: Any) -> list[Any]:
    return list(server.server.server_state.connections)


SOCKETS = {
    "a connection that says nothing": _silence,
    "a head that never ends": _slow_head,
    "half a head after an answer": _slow_head_after_an_answer,
    "a body that trickles": _slow_body,
    "half a body": _half_a_body,
    "an endless body that nobody wants": _endless_body_of_a_get,
    "a reset in the middle of a body": _early_end,
    "no HTTP": _no_http,
    "smuggled requests": _smuggled,
    "broken chunks": _broken_chunks,
    "a megabyte of head": _long_head,
    "a hundred requests at once": _pipelined,
    "a client that never reads": _never_reads,
    "an upgrade to WebSocket": _websocket,
    "a target of another host": _rebound,
    "three hundred silent connections": _a_crowd,
    "requests that hold up its end": _stopped,
}
