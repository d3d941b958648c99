"""Tools of MCP servers: started as commands, reached by URL, or objects of a Python module.

Each server has one connection in a worker if it is ``stateless``, else one for each episode. The package ``mcp``
(extra ``mcp``) is imported when a connection is made.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pydantic import Field

from envs.base import Role, Task, ToolCall, ToolResult, ToolSpec
from envs.plugs.mcp_connection import Connection, Offered
from envs.plugs.mcp_server import Server
from envs.plugs.session import PlugEnvironment, PlugSection, PlugSession, ServerLost, offered
from envs.plugs.threads import outside

_NO_NAME = re.compile(r"[^A-Za-z0-9_-]")  # characters that chat formats do not write in a tool's name


class McpConfig(PlugSection):
    """MCP servers, by names of your own."""

    servers: dict[str, Server] = Field(
        min_length=1, description="name: {command, args, env}, {url, headers} or {module}"
    )


class McpEnvironment(PlugEnvironment):
    """Tools of MCP servers."""

    Config = McpConfig
    config: McpConfig

    def __init__(self, config: McpConfig) -> None:
        super().__init__(config)
        self._shared: dict[tuple[str, asyncio.AbstractEventLoop], Connection] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}  # connections belong to a process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])

    @property
    def stateless(self) -> bool:  # type: ignore[override]
        """Whether all servers are."""
        return all(server.stateless for server in self.config.servers.values())

    @property
    def spreads(self) -> bool:  # type: ignore[override]
        """The same."""
        return self.stateless

    def tools(self) -> tuple[ToolSpec, ...]:
        """Asks each server once in a process. ValueError for one that cannot be reached."""
        return tuple(spec for spec, _, _ in named_tools(_listed(self.config)))

    def notes(self) -> Iterator[str]:
        """ValueError if a server cannot be reached, or a name of a tool is wrong."""
        offered(self.config, self.tools())
        yield from ()

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> McpSession:
        """A session; servers with state are started for it."""
        own = {name: Connection(name, server) for name, server in self.config.servers.items() if not server.stateless}
        connections = {name: own.get(name) or self._connection(name) for name in self.config.servers}
        try:
            async with asyncio.TaskGroup() as group:
                listing = {name: group.create_task(each.tools()) for name, each in connections.items()}
        except* ServerLost as lost:
            for each in own.values():
                await each.close()
            raise lost.exceptions[0] from None
        found = named_tools({name: task.result() for name, task in listing.items()})
        places = {spec.name: (connections[server], tool) for spec, server, tool in found}
        return McpSession(
            offered(self.config, [spec for spec, _, _ in found]), self.config.result_chars, places, tuple(own.values())
        )

    async def close(self) -> None:
        """End the shared connections; the environment can be used again."""
        shared, self._shared = self._shared, {}
        here = asyncio.get_running_loop()
        for (_, loop), connection in shared.items():
            if loop is here:
                await connection.close()

    def _connection(self, name: str) -> Connection:
        key = name, asyncio.get_running_loop()
        if key not in self._shared:
            self._shared[key] = Connection(name, self.config.servers[name])
        return self._shared[key]


class McpSession(PlugSession):
    """One episode's tools: the connection and the server's own name of each."""

    def __init__(
        self,
        offered: dict[Role, tuple[ToolSpec, ...]],
        result_chars: int,
        places: dict[str, tuple[Connection, str]],
        own: tuple[Connection, ...],
    ) -> None:
        super().__init__(offered, result_chars)
        self._places, self._own = places, own

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """See :class:`PlugSession`."""
        connection, tool = self._places[call.name]
        return await connection.call(tool, call.arguments)

    async def close(self) -> None:
        """Also ends the servers of this episode."""
        self.closed = True
        own, self._own = self._own, ()
        await asyncio.gather(*(connection.close() for connection in own))


def named_tools(listing: dict[str, list[Offered]]) -> list[tuple[ToolSpec, str, str]]:
    """(tool as agents see it, server, the server's name of it); SERVER_TOOL where servers share a name."""
    counts = Counter(tool.name for tools in listing.values() for tool in tools)
    found = []
    for server, tools in listing.items():
        for tool in tools:
            name = tool.name if counts[tool.name] == 1 else f"{server}_{tool.name}"
            spec = ToolSpec(name=_NO_NAME.sub("_", name), description=tool.description, parameters=tool.parameters)
            found.append((spec, server, tool.name))
    return found


_LISTINGS: dict[str, dict[str, list[Offered]]] = {}
_LISTING = threading.Lock()


def _listed(config: McpConfig) -> dict[str, list[Offered]]:
    """The tools of all servers, asked in a thread, since the caller may have an event loop."""

    async def ask() -> dict[str, list[Offered]]:
        connections = {name: Connection(name, server) for name, server in config.servers.items()}
        try:
            return {name: await each.tools() for name, each in connections.items()}
        finally:
            for each in connections.values():
                await each.close()

    key = json.dumps(config.model_dump(mode="json", include={"servers"}), sort_keys=True)
    with _LISTING:
        if key not in _LISTINGS:
            try:
                _LISTINGS[key] = outside(ask())
            except ServerLost as lost:
                raise ValueError(f"envs.config.servers: {lost}") from lost
        return _LISTINGS[key]
