"""How an MCP server is named in a configuration."""

from __future__ import annotations

import os
import re

from pydantic import Field, model_validator

from envs.base import Section

_VARIABLE = re.compile(r"\$\{?([A-Za-z_]\w*)\}?")


class Server(Section):
    """One MCP server: exactly one of ``command``, ``url`` and ``module``."""

    command: str | None = Field(default=None, description="program that speaks MCP on its standard input and output")
    args: tuple[str, ...] = Field(default=(), description="its arguments")
    env: dict[str, str] = Field(default_factory=dict, description="its variables; $NAME takes one of the shell's")
    url: str | None = Field(default=None, description="of a server with streamable HTTP, such as http://host/mcp")
    headers: dict[str, str] = Field(default_factory=dict, description="HTTP headers; $NAME takes a shell's variable")
    module: str | None = Field(default=None, description="package.module:name of an MCPServer, run in the worker")
    tools: tuple[str, ...] | None = Field(default=None, description="the tools that agents may use; null = all")
    stateless: bool = Field(
        default=False, description="no call changes later ones: all episodes of a worker share a connection"
    )

    @model_validator(mode="after")
    def _check(self) -> Server:
        given = [name for name in ("command", "url", "module") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of command, url and module, not {' and '.join(given) or 'none'}")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url = {self.url}: must begin with http:// or https://")
        if self.command and " " in self.command.strip() and not os.path.exists(self.command):
            raise ValueError(f"command = {self.command}: write only the program, and its arguments in args")
        return self

    def variables(self, given: dict[str, str]) -> dict[str, str]:
        """The values of ``env`` or ``headers``, with those of the shell; ValueError for one that is not set."""
        return {name: _VARIABLE.sub(_of_shell, value) for name, value in given.items()}


def _of_shell(match: re.Match[str]) -> str:
    if (value := os.environ.get(match[1])) is None:
        raise ValueError(f"envs.config.servers: the variable {match[1]} is not set in this shell")
    return value
