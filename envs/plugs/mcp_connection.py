"""One connection to an MCP server, usable from any task of its event loop; it connects again when it is lost."""

from __future__ import annotations

import asyncio
import base64
import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from envs.base import ErrorKind, ToolResult
from envs.named import extra, named
from envs.plugs.session import Refused, ServerLost, reason

if TYPE_CHECKING:
    from envs.plugs.mcp_server import Server

CONNECT_S = 60.0  # until a server has started and listed its tools
_END_S = 10.0
_PAGES = 100  # of a list of tools
_LAST = 300  # characters of what a server wrote to its standard error


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A server's tool."""

    name: str
    description: str
    parameters: dict[str, Any]


class Connection:
    """The connection to ``server``, made with the first use. Its client lives in a task of its own.

    ``running``: a server object of this process to connect with instead.
    """

    def __init__(self, name: str, server: Server, running: Any = None) -> None:
        self.name, self.server, self._running = name, server, running
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._client: Any = None
        self._tools: list[Offered] = []
        self._lock = asyncio.Lock()
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the connection

    async def tools(self) -> list[Offered]:
        """The tools that agents may use; ServerLost, or ValueError for a name that the server does not have."""
        await self._connected()
        allowed, there = self.server.tools, [tool.name for tool in self._tools]
        for name in allowed or ():
            if name not in there:
                said = (
                    f'envs.config.servers.{self.name}.tools: there is no tool "{name}"; there are: {", ".join(there)}'
                )
                raise ValueError(said)
        return [tool for tool in self._tools if allowed is None or tool.name in allowed]

    async def call(self, tool: str, arguments: dict[str, Any]) -> ToolResult:
        """The result of ``tool``. Refused for the tool's errors, ServerLost for the server's.

        Where the server is stateless, a lost connection is made again and the call repeated, once.
        """
        tries = 2 if self.server.stateless else 1
        for left in reversed(range(tries)):
            client = await self._connected()
            try:
                return _result(await client.call_tool(tool, arguments))
            except Exception as error:
                fault = self._fault(error)
                if not isinstance(fault, ServerLost):
                    raise fault from error
                await self._end()
                if not left:
                    raise fault from error
        raise AssertionError

    async def close(self) -> None:
        """End the connection, and the server if it was started for it."""
        await self._end()
        self._errors.close()

    async def _connected(self) -> Any:
        async with self._lock:
            if self._client is None:
                ready: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                self._ended = asyncio.Event()
                self._task = asyncio.create_task(self._hold(ready, self._ended))
                try:
                    async with asyncio.timeout(CONNECT_S):
                        self._client = await asyncio.shield(ready)
                except TimeoutError:
                    await self._end()
                    raise self._lost(f"no answer within {CONNECT_S:.0f} s") from None
            return self._client

    async def _hold(self, ready: asyncio.Future[Any], ended: asyncio.Event) -> None:
        """Enter and leave the client in one task, as its cancel scopes demand."""
        try:
            async with self._new_client() as client:
                self._tools = await _all_tools(client)
                ready.set_result(client)
                await ended.wait()
        except BaseException as error:
            if not ready.done():
                cause = _first(error)
                wrong = isinstance(cause, ValueError | ModuleNotFoundError)
                ready.set_exception(cause if wrong else self._lost(f"{type(cause).__name__}: {cause}"))
            elif isinstance(error, asyncio.CancelledError):
                raise

    async def _end(self) -> None:
        self._client, task, self._task = None, self._task, None
        if task is None:
            return
        self._ended.set()
        with suppress(Exception, asyncio.CancelledError):
            async with asyncio.timeout(_END_S):
                await asyncio.shield(task)
        if not task.done():
            task.cancel()

    def _new_client(self) -> Any:
        mcp, server = _package("mcp"), self.server
        if self._running is not None:
            return mcp.Client(self._running)
        if server.command:
            env = server.variables(server.env)
            started = mcp.StdioServerParameters(command=server.command, args=list(server.args), env=env)
            return mcp.Client(_package("mcp.client.stdio").stdio_client(started, self._errors))
        if server.module:
            return mcp.Client(named(server.module, f"envs.config.servers.{self.name}.module"))
        if not server.headers:
            return mcp.Client(server.url)
        httpx2 = _package("httpx2")
        http = httpx2.AsyncClient(headers=server.variables(server.headers), timeout=httpx2.Timeout(30, read=300))
        transport = _package("mcp.client.streamable_http").streamable_http_client(server.url, http_client=http)
        return mcp.Client(transport)

    def _fault(self, error: Exception) -> Exception:
        """What ``error`` of a call means: MCP reports errors in results, as MCPError, and as groups of others."""
        types, anyio = _package("mcp_types"), _package("anyio")
        gone = (OSError, EOFError, anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream)
        cause = _first(error)
        code = getattr(getattr(cause, "error", None), "code", None)
        if isinstance(cause, TimeoutError) or code == types.REQUEST_TIMEOUT:
            return TimeoutError()
        if isinstance(cause, Refused):
            return cause
        said = str(cause) if code is not None else f"{type(cause).__name__}: {cause}"
        if code == types.CONNECTION_CLOSED or isinstance(cause, (*gone, _package("httpx2").TransportError)):
            return self._lost(f"{type(cause).__name__}: {cause}")
        kinds = {types.INVALID_PARAMS: ErrorKind.BAD_ARGS, types.METHOD_NOT_FOUND: ErrorKind.UNKNOWN_TOOL}
        return Refused(kinds.get(code, ErrorKind.SERVER), said)

    def _lost(self, why: str) -> ServerLost:
        server = self.server
        what = server.url or server.module or " ".join([server.command or "", *server.args])
        last = ""
        if not self._errors.closed:
            with suppress(OSError, ValueError):
                self._errors.seek(0)
                last = " ".join(self._errors.read().split())[-_LAST:]
        return ServerLost(f"server {self.name} ({what}): {why}" + (f"; it wrote: {last}" if last else ""))


def _package(module: str) -> Any:
    return extra(module, "parl-swarm[mcp]", "envs.name=mcp")


async def _all_tools(client: Any) -> list[Offered]:
    found: list[Offered] = []
    cursor = None
    for _ in range(_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            found.append(
                Offered(name=tool.name, description=tool.description or "", parameters=dict(tool.input_schema))
            )
        cursor = page.next_cursor
        if not cursor:
            break
    return found


def _first(error: BaseException) -> BaseException:
    """The first error within exception groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _result(result: Any) -> ToolResult:
    """An MCP result as ours: texts joined, PNG pictures kept, other parts named."""
    texts, images = [], []
    for part in result.content:
        if part.type == "text":
            texts.append(part.text)
        elif part.type == "image" and part.mime_type == "image/png":
            images.append(base64.b64decode(part.data))
        elif part.type == "resource" and hasattr(part.resource, "text"):
            texts.append(part.resource.text)
        else:
            texts.append(f"[{part.type} {getattr(part, 'mime_type', None) or getattr(part, 'uri', '')}]")
    if not texts and not images and result.structured_content is not None:
        texts.append(json.dumps(result.structured_content, ensure_ascii=False))
    text = "\n".join(texts)
    if result.is_error:
        raise Refused(ErrorKind.SERVER, reason(text) or "the tool failed")
    return ToolResult(text=text, images=tuple(images))
