"""An environment's tools behind HTTP: the client of an application, and the session of one episode."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Literal

import httpx
from starlette.applications import Starlette

from envs.base import ErrorKind, Role, ToolCall, ToolResult, ToolSpec
from envs.world.site.pictures import decoded
from envs.world.site.server import SocketServer

_JSON = {"content-type": "application/json"}
_GONE = (502, 503, 504)  # a proxy's answers for a missing server


class Http:
    """Posts JSON through one of httpx's transports, without httpx's client.

    Its cookies, redirects and joining of addresses cost more than the rest of a call in process.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, base_url: str) -> None:
        self._transport, self._base_url, self.is_closed = transport, base_url, False
        self._urls: dict[str, httpx.URL] = {}

    async def post(self, path: str, body: str) -> tuple[int, bytes]:
        """Status and body of the reply; httpx.TransportError without one."""
        if path not in self._urls:
            self._urls[path] = httpx.URL(self._base_url + path)
        request = httpx.Request("POST", self._urls[path], headers=_JSON, content=body)
        reply = await self._transport.handle_async_request(request)
        assert isinstance(reply.stream, httpx.AsyncByteStream)
        try:
            return reply.status_code, b"".join([part async for part in reply.stream])
        finally:
            await reply.stream.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        self.is_closed = True
        await self._transport.aclose()


class ToolClient:
    """Reaches the application that ``app`` makes: in process (``asgi``), or over a local ``socket``.

    The application and its client are made by the first :meth:`get`.
    """

    def __init__(self, app: Callable[[], Starlette], transport: Literal["asgi", "socket"]) -> None:
        self._app, self._transport = app, transport
        self._server: SocketServer | None = None
        self._client: Http | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def get(self) -> Http:
        """The client of the running event loop."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:  # a pool belongs to its event loop
            self._client, self._loop = self._make(), loop
        return self._client

    async def close(self) -> None:
        """Close the client and, with ``socket``, the server. :meth:`get` starts both again."""
        client, server = self._client, self._server
        self._client = self._server = self._loop = None
        if client is not None:
            await client.aclose()
        if server is not None:
            await asyncio.to_thread(server.close)

    def _make(self) -> Http:
        # The call's own deadline bounds every wait: a request has none without httpx's client.
        if self._transport == "asgi":
            return Http(httpx.ASGITransport(app=self._app(), raise_app_exceptions=False), "http://tools")
        if self._server is None:
            self._server = SocketServer(self._app())
        # A small pool: httpx scans every connection for each request, so a large one is slower.
        limits = httpx.Limits(max_connections=16, max_keepalive_connections=16)
        return Http(httpx.AsyncHTTPTransport(limits=limits, trust_env=False), self._server.url)


class ToolSession:
    """One episode's tools at ``POST /{place}/{tool}``. Nothing is written, so agents need no state of their own."""

    def __init__(self, client: Http, place: str, tools: Sequence[ToolSpec]) -> None:
        self._client, self._place, self._tools, self._closed = client, place, tuple(tools), False

    def tools(self, role: Role) -> list[ToolSpec]:
        """The tools, the same for both roles."""
        return list(self._tools)

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        """Run ``call`` within ``deadline_s`` seconds; failures are results, only cancellation propagates."""
        started = time.perf_counter()
        images: tuple[bytes, ...] = ()
        machine = False
        if self._closed or self._client.is_closed:
            text, error = "error: closed", ErrorKind.CANCELLED
        elif call.name not in {tool.name for tool in self._tools}:
            text, error = "error: unknown tool", ErrorKind.UNKNOWN_TOOL
        else:
            try:
                text, error, images = await self._post(call, deadline_s)
            except httpx.TransportError as lost:
                text, error, machine = f"error: server ({type(lost).__name__}: {lost})", ErrorKind.SERVER, True
        latency_s = time.perf_counter() - started
        return ToolResult(text=text, error=error, images=images, latency_s=latency_s, machine=machine)

    async def close(self) -> None:
        """End the session; later calls answer ``cancelled``."""
        self._closed = True

    async def _post(self, call: ToolCall, deadline_s: float) -> tuple[str, ErrorKind | None, tuple[bytes, ...]]:
        """Text, error and pictures; httpx.TransportError without a server."""
        try:
            body = json.dumps(call.arguments)
        except (TypeError, ValueError):
            return "error: bad JSON", ErrorKind.BAD_ARGS, ()
        try:
            async with asyncio.timeout(deadline_s):
                status, said = await self._client.post(f"/{self._place}/{call.name}", body)
            if status in _GONE:
                raise httpx.RemoteProtocolError(f"status {status}")
            if status >= 500:
                return "error: server", ErrorKind.SERVER, ()
            payload = json.loads(said)
            error = payload["error"]
            images = decoded(payload.get("images") or ())
            return payload["text"], None if error is None else ErrorKind(error), images
        except TimeoutError:
            return "error: timeout", ErrorKind.TIMEOUT, ()
        except (ValueError, KeyError, TypeError):  # a reply of another server
            return "error: server", ErrorKind.SERVER, ()
