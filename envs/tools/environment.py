"""The tools as an environment: a user's questions, and Python, files, pages and search to answer them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from pydantic import Field, field_validator, model_validator

from envs.base import Role, Task, ToolCall, ToolResult, ToolSpec
from envs.plugs.session import PlugEnvironment, PlugSection, PlugSession, offered
from envs.tools.domains import Domains
from envs.tools.fetch import FetchConfig, FetchKit
from envs.tools.files import FilesConfig, FilesKit, make_folder, remove_folder
from envs.tools.kit import Kit, Opened
from envs.tools.python import PythonConfig, PythonKit
from envs.tools.search import SearchConfig, SearchKit


class ToolsConfig(PlugSection):
    """Tools to choose from; ``{}`` takes one as it is."""

    python: PythonConfig | None = Field(default=None, description="code in the sandbox")
    files: FilesConfig | None = Field(default=None, description="files of the episode, which python works in too")
    fetch: FetchConfig | None = Field(default=None, description="pages of the web")
    search: SearchConfig | None = Field(default=None, description="hosted search")
    blocked: tuple[str, ...] = Field(default=(), description="domains that are neither opened nor shown")

    @field_validator("blocked")
    @classmethod
    def _domains(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        Domains(names)
        return names

    @model_validator(mode="after")
    def _some(self) -> ToolsConfig:
        if not any((self.python, self.files, self.fetch, self.search)):
            raise ValueError("name at least one of python, files, fetch, search; {} takes it as it is")
        return self


class ToolsEnvironment(PlugEnvironment):
    """The chosen tools over tasks of the user's own."""

    Config = ToolsConfig
    config: ToolsConfig

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])

    @cached_property
    def kits(self) -> tuple[Kit, ...]:
        """The chosen kits, in the order of their names' first use."""
        given, found = self.config, list[Kit]()
        if given.search:
            found.append(SearchKit(given.search, Domains(given.blocked)))
        if given.fetch:
            found.append(FetchKit(given.fetch, given.blocked))
        if given.python:
            found.append(PythonKit(given.python))
        if given.files:
            found.append(FilesKit(given.files))
        return tuple(found)

    @property
    def stateless(self) -> bool:  # type: ignore[override]
        """Whether no kit has state."""
        return all(kit.stateless for kit in self.kits)

    @property
    def spreads(self) -> bool:  # type: ignore[override]
        """Whether agents share nothing: files are shared, interpreters are an agent's own."""
        return self.config.files is None

    def tools(self) -> tuple[ToolSpec, ...]:
        """See :class:`envs.base.Environment`."""
        return tuple(spec for kit in self.kits for spec in kit.specs)

    def notes(self) -> Iterator[str]:
        """ValueError for missing keys, packages and isolation; says how well code is isolated."""
        offered(self.config, self.tools())
        for kit in self.kits:
            kit.check()
            if isinstance(kit, PythonKit):
                yield f"envs.config.python: code runs in a sandbox of the level {kit.level}"

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> ToolsSession:
        """A session with its own files and interpreters."""
        folder = await asyncio.to_thread(make_folder) if self.config.files else None
        opened = [(kit, kit.open(folder)) for kit in self.kits]
        return ToolsSession(offered(self.config, self.tools()), self.config.result_chars, opened, folder)

    async def close(self) -> None:
        """Close clients and end interpreters; the environment can be used again."""
        for kit in self.kits:
            await kit.close()


class ToolsSession(PlugSession):
    """One episode's tools."""

    def __init__(
        self,
        by_role: dict[Role, tuple[ToolSpec, ...]],
        result_chars: int,
        opened: list[tuple[Kit, Opened]],
        folder: str | None,
    ) -> None:
        super().__init__(by_role, result_chars)
        self._by_tool = {spec.name: part for kit, part in opened for spec in kit.specs}
        self._parts, self._folder = [part for _, part in opened], folder

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """See :class:`PlugSession`."""
        return await self._by_tool[call.name].run(agent_id, call, deadline_s)

    async def cancel(self, agent_id: str) -> None:
        """Stop what runs for an agent."""
        for part in self._parts:
            await part.cancel(agent_id)

    async def close(self) -> None:
        """End the session's interpreters and delete its files."""
        await super().close()
        for part in self._parts:
            await part.close()
        folder, self._folder = self._folder, None
        if folder:
            await asyncio.to_thread(remove_folder, folder)
