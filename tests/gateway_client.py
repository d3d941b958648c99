"""An in-process gateway over a constant engine, for tests and attacks on its HTTP side."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from model.chat.kimi import KimiChat, assistant_pieces
from model.tokenizer.bpe import train_tokenizer
from model.tokenizer.tokenizer import Tokenizer
from rollouts.engine.base import Completion, Finish, Pictures, Sampling
from rollouts.gateway.app import Gateway, GatewaySettings
from rollouts.gateway.guard import Access
from rollouts.gateway.socket import server_config
from rollouts.store.store import EpisodeStore

CHAT = "/v1/chat/completions"
USER = {"role": "user", "content": "q"}
BODY: dict[str, Any] = {"messages": [USER], "max_tokens": 4}


@lru_cache(maxsize=1)
def small_tokenizer() -> Tokenizer:
    """All bytes, and hardly a merge."""
    return train_tokenizer(["What is the age of Kim? It is 37."], 400)


class Parrot:
    """An engine that always returns ``text``; ``raises``: raises instead."""

    def __init__(self, text: str = "It is 37.", raises: Exception | None = None) -> None:
        self.text, self.raises = text, raises
        self.released: list[str] = []

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        if self.raises is not None:
            raise self.raises
        tokens = small_tokenizer().encode_segments(assistant_pieces(self.text, thinking=False))
        return Completion(tokens=tokens, logprobs=[-0.5] * len(tokens), finish=Finish.STOP, policy_version=0)

    async def release(self, session: str) -> None:
        self.released.append(session)


class Caller:
    """A client of ``gateway`` that checks the form of every error."""

    def __init__(self, gateway: Gateway, client: httpx.AsyncClient) -> None:
        self.gateway, self.client = gateway, client

    async def send(self, path: str, body: Any = None, method: str = "POST", **more: Any) -> httpx.Response:
        """Send bytes unchanged, anything else as JSON."""
        if isinstance(body, bytes):
            more = {"content": body, **more, "headers": {"content-type": "application/json", **more.get("headers", {})}}
        elif body is not None:
            more["json"] = body
        answer = await self.client.request(method, path, **more)
        assert answer.status_code < 500 or answer.status_code in (502, 503, 504), answer.text
        if answer.status_code >= 400 and method != "HEAD":
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"], error
            assert "Traceback" not in error["message"]
        return answer

    async def refused(self, status: int, field: str | None, path: str, body: Any = None, **more: Any) -> dict[str, Any]:
        """The error of a request that must be refused with ``status`` and name ``field``."""
        answer = await self.send(path, body, **more)
        assert answer.status_code == status, f"{answer.status_code}: {answer.text[:500]}"
        error = answer.json()["error"]
        assert error["param"] == field, error
        if field is not None:
            assert error["message"].startswith(field.split("[")[0]), error
        return error

    async def alive(self) -> None:
        """Fails unless other requests are still served: a completion, the list, a reward."""
        assert (await self.send(CHAT, {**BODY, "user": "another/1"})).status_code == 200
        listed = await self.send("/v1/parl/episodes", method="GET")
        assert "another/1" in [row["episode"] for row in listed.json()["episodes"]]
        assert (await self.send("/v1/parl/episodes/another/1/reward", {"reward": 1})).status_code == 200


@asynccontextmanager
async def gateway(
    folder: Path | None, engine: Any = None, *, access: Access | None = None, **settings: Any
) -> AsyncIterator[Caller]:
    """A gateway that records in ``folder``, if given, and a client."""
    options = GatewaySettings(**{"model": "policy", "longest": 4000, **settings})
    served = Gateway(
        engine or Parrot(), KimiChat(small_tokenizer()), options, EpisodeStore(folder) if folder else None, access
    )
    app = served.app()
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            yield Caller(served, client)


async def asgi_post(gateway: Gateway, path: str, body: bytes, headers: list[tuple[str, Any]]) -> tuple[int, Any]:
    """Status and JSON of a request with exactly these headers, which no client would send."""
    raw = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in headers]
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    scope |= {"headers": raw, "http_version": "1.1", "scheme": "http", "server": ("127.0.0.1", 8000), "root_path": ""}
    sent: list[Any] = []
    bodies = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if bodies:
            return bodies.pop()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await gateway.app()(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


class OnSocket:
    """A gateway behind uvicorn on a port of loopback; raw bytes in and out."""

    def __init__(self, gateway: Gateway, server: uvicorn.Server, port: int) -> None:
        self.gateway, self.server, self.port = gateway, server, port

    def connect(self) -> socket.socket:
        """A connection with a deadline."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def say(self, raw: bytes) -> bytes:
        """Everything received for ``raw`` until the connection ends."""
        with self.connect() as one:
            one.sendall(raw)
            return rest(one)

    def request(self, method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
        """One request with Connection: close; returns the whole answer."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}", "Connection: close", *headers]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return self.say("\r\n".join([*lines, "", ""]).encode() + body)

    def alive(self) -> None:
        """Fails unless it answers another request at once."""
        began = time.monotonic()
        assert self.request("GET", "/health").startswith(b"HTTP/1.1 200"), "it does not answer any more"
        assert time.monotonic() - began < 20


def rest(one: socket.socket) -> bytes:
    """Everything until the other side closes the connection; TimeoutError otherwise."""
    parts = []
    while True:
        try:
            part = one.recv(65536)
        except ConnectionResetError:
            return b"".join(parts)
        if not part:
            return b"".join(parts)
        parts.append(part)


@contextmanager
def on_socket(
    folder: Path,
    engine: Any = None,
    *,
    access: Access | None = None,
    head_s: float = 0.5,
    stall_s: float = 0.5,
    finish_s: int = 5,
    **settings: Any,
) -> Iterator[OnSocket]:
    """A gateway on a real socket, with short deadlines. Fails if the server logged an error."""
    options = GatewaySettings(**{"model": "policy", "longest": 4000, "body_s": 0.5, **settings})
    served = Gateway(engine or Parrot(), KimiChat(small_tokenizer()), options, EpisodeStore(folder), access)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # unread data waits in the server
    server = uvicorn.Server(server_config(served.app(), head_s=head_s, stall_s=stall_s, finish_s=finish_s))
    complaints: list[Any] = []
    log = logging.Handler(logging.ERROR)
    log.addFilter(lambda record: not record.getMessage().startswith("Cancel "))  # a message at shutdown
    log.emit = lambda record: complaints.append(record.getMessage())
    logging.getLogger("uvicorn.error").addHandler(log)

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        await server.serve(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    give_up = time.monotonic() + 20
    while not server.started:
        assert time.monotonic() < give_up and thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield OnSocket(served, server, listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)
        logging.getLogger("uvicorn.error").removeHandler(log)
    assert not complaints, complaints
