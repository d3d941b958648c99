"""A prepared benchmark as an environment: ``envs: {name: benchmark, config: {folder: FOLDER}}``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from envs.base import Environment, Role, Score, Section, Session, Task, ToolCall, ToolResult, ToolSpec
from envs.benchmarks.base import MANIFEST, Ask, Benchmark, Row, read_prepared
from envs.benchmarks.judge import ChatJudge, JudgeConfig
from envs.benchmarks.registry import prepared
from envs.named import named

_TOOLS = {
    "tools": "envs.tools.environment:ToolsEnvironment",
    "retrieve": "envs.plugs.retrieve:RetrieveEnvironment",
    "functions": "envs.plugs.functions:FunctionsEnvironment",
    "mcp": "envs.plugs.mcp:McpEnvironment",
    "research": "envs.research.environment:ResearchEnvironment",
}


class ToolsConfig(Section):
    """Another environment, whose tools the agents get."""

    name: str = Field(description=f"{', '.join(_TOOLS)}, or package.module:Class")
    config: dict[str, Any] = Field(default_factory=dict, description="its section")


class BenchmarkConfig(Section):
    """Which benchmark, with whose tools and judge."""

    folder: Path = Field(description="what `parl bench prepare` wrote")
    tools: ToolsConfig | None = Field(default=None, description="where search and the like come from")
    judge: JudgeConfig | None = Field(default=None, description="the model that judges, where the benchmark needs one")
    settings: dict[str, Any] = Field(default_factory=dict, description="what one benchmark alone has")

    @property
    def pictures(self) -> bool:
        """Whether agents look at pictures."""
        return (self.folder / MANIFEST).exists() and prepared(self.folder).name == "mockups"


class BenchmarkEnvironment(Environment):
    """Tasks of one benchmark; the session scores by its rules."""

    Config = BenchmarkConfig
    foreign = True

    def __init__(self, config: BenchmarkConfig) -> None:
        super().__init__(config)
        self._judge: ChatJudge | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])

    @cached_property
    def benchmark(self) -> Benchmark:
        """The benchmark; ValueError if the folder holds none."""
        return prepared(self.config.folder, self.config.settings)

    @cached_property
    def _rows(self) -> dict[str, Row]:
        return {str(row["id"]): row for row in read_prepared(self.config.folder)}

    @cached_property
    def _other(self) -> Environment | None:
        given = self.config.tools
        if given is None:
            return None
        kind: Any = named(_TOOLS.get(given.name) or given.name, "envs.config.tools.name")
        settings = dict(given.config)
        if "blocked" in kind.Config.model_fields:
            settings["blocked"] = [*self.benchmark.blocked, *settings.get("blocked", ())]
        return kind(kind.Config.model_validate(settings))

    def tasks(self, split: str) -> list[Task]:
        """All tasks of the benchmark, whatever the split: it is for evaluation, not for training."""
        return [self.benchmark.task(row) for row in self._rows.values()]

    def tools(self) -> tuple[ToolSpec, ...]:
        """Those of the other environment."""
        return self._other.tools() if self._other else ()

    def digest(self) -> dict[str, str]:
        """The hash of the tasks."""
        return {"folder": json.loads((self.config.folder / MANIFEST).read_text())["sha256"]}

    def notes(self) -> Iterator[str]:
        """ValueError for what a benchmark lacks to be run."""
        if self.benchmark.judged and self.config.judge is None:
            raise ValueError(f"envs.config.judge: {self.benchmark.name} is scored by a judge: set url and model")
        if self._other:
            yield from self._other.notes()
        elif self.benchmark.needs_tools:
            yield f"{self.benchmark.name} is run without tools: envs.config.tools names an environment with some"

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> BenchmarkSession:
        """A session with the tools of both."""
        row = self._rows[task.key]
        if self.config.judge and self._judge is None:
            self._judge = ChatJudge(self.config.judge)
        other = await self._other.open(task, seed=seed, attempt=attempt) if self._other else None
        return BenchmarkSession(self.benchmark, row, self.benchmark.session(row), other, self._judge)

    async def close(self) -> None:
        """Close the judge's client and the other environment."""
        if self._judge:
            await self._judge.close()
        if self._other:
            await self._other.close()


class BenchmarkSession:
    """One episode: the benchmark's own tools, those of another environment, and the score."""

    def __init__(self, benchmark: Benchmark, row: Row, own: Session, other: Session | None, ask: Ask | None) -> None:
        self._benchmark, self._row, self._own, self._other, self._ask = benchmark, row, own, other, ask

    def tools(self, role: Role) -> list[ToolSpec]:
        """All tools of ``role``."""
        return [*self._own.tools(role), *(self._other.tools(role) if self._other else ())]

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        """Pass a call to the session that has the tool."""
        role = Role.SUBAGENT if "/" in agent_id else Role.ORCHESTRATOR
        own = self._other is None or call.name in {tool.name for tool in self._own.tools(role)}
        session = self._own if own else self._other
        assert session
        return await session.call(agent_id, call, deadline_s=deadline_s)

    async def cancel(self, agent_id: str) -> None:
        """Tell the other session, if it wants to know."""
        if hasattr(self._other, "cancel"):
            await self._other.cancel(agent_id)  # type: ignore[union-attr]

    async def score(self, episode: Any) -> Score:
        """The score of the episode's answer; one that was never given counts as empty."""
        answer = episode.answer if str(episode.status) == "answered" else ""
        grade = getattr(self._own, "grade", None)
        if grade is not None:  # it looks at what the agents made, not at the answer alone
            return await grade(answer)
        return await self._benchmark.score(self._row, answer, self._ask)

    async def close(self) -> None:
        """Close both sessions."""
        await self._own.close()
        if self._other:
            await self._other.close()
