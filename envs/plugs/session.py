"""What the sessions of all plugs share: tools by role, deadlines, errors as results, and a limit on length."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from pydantic import Field
from pydantic_core import to_json

from envs.base import Environment, ErrorKind, Role, Section, Task, ToolCall, ToolResult, ToolSpec

_REASON = 300  # characters of an error that an agent reads
_ENOUGH = 10  # items that can be divided into splits
_HELD_OUT = {"val": 8, "test": 9}  # of every ten items, these places
_PNG = b"\x89PNG\r\n\x1a\n"


class PlugSection(Section):
    """The keys that the sections of all plugs share."""

    orchestrator: tuple[str, ...] | None = Field(
        default=None, description="names of the tools that the orchestrator has; null = all"
    )
    subagents: tuple[str, ...] | None = Field(
        default=None, description="names of the tools that sub-agents have; null = all"
    )
    result_chars: int = Field(default=20_000, gt=0, description="characters of a result that an agent reads")


class ServerLost(ConnectionError):
    """The tools' server cannot be reached: a fault of the machine, as all connection errors are."""


class Refused(Exception):
    """A call that failed, with the kind of error that its result gets."""

    def __init__(self, kind: ErrorKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def no_tasks() -> ValueError:
    """The error of an environment that brings tools alone."""
    return ValueError(
        "envs.tasks: this environment brings tools but no tasks; name a file of tasks (.jsonl, .csv, .parquet), a data"
        " set of the hub, or package.module:function"
    )


class PlugEnvironment(Environment):
    """An environment whose tasks are the user's own, named in ``envs.tasks``."""

    Config = PlugSection

    def tasks(self, split: str) -> Iterable[Task]:
        """ValueError: a plug brings tools, the user the tasks."""
        raise no_tasks()


def offered(config: PlugSection, tools: Sequence[ToolSpec]) -> dict[Role, tuple[ToolSpec, ...]]:
    """The ``tools`` of each role; ValueError for a name that does not exist."""
    chosen = {Role.ORCHESTRATOR: config.orchestrator, Role.SUBAGENT: config.subagents}
    there = [tool.name for tool in tools]
    for key, names in (("orchestrator", config.orchestrator), ("subagents", config.subagents)):
        for name in names or ():
            if name not in there:
                raise ValueError(f'envs.config.{key}: there is no tool "{name}"; there are: {", ".join(there)}')
    return {role: tuple(t for t in tools if names is None or t.name in names) for role, names in chosen.items()}


def places(count: int, split: str) -> list[int]:
    """Which of ``count`` items belong to ``split``: of every ten, the last two to val and test; of few, all to each."""
    if split not in ("train", *_HELD_OUT):
        raise ValueError(f"unknown split {split!r}: it must be one of train, {', '.join(_HELD_OUT)}")
    if count < _ENOUGH:
        return list(range(count))
    return [i for i in range(count) if (i % 10 == _HELD_OUT[split] if split in _HELD_OUT else i % 10 < 8)]


class PlugSession:
    """One episode's tools. A subclass runs a call in :meth:`run`; here it gets its deadline and its errors."""

    failed: ClassVar[ErrorKind] = ErrorKind.SERVER  # the kind of an exception of the tool itself

    def __init__(self, offered: dict[Role, tuple[ToolSpec, ...]], result_chars: int) -> None:
        self._offered, self._result_chars, self.closed = offered, result_chars, False

    def tools(self, role: Role) -> list[ToolSpec]:
        """The tools of ``role``."""
        return list(self._offered[role])

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        """Run ``call``; every failure is a result, and only cancellation propagates."""
        started = time.perf_counter()
        result = await self._answer(agent_id, call, deadline_s)
        cut = self._cut(result.text)
        latency_s = time.perf_counter() - started
        return dataclasses.replace(result, text=cut, latency_s=latency_s)

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """The result of a known tool. May raise Refused, ServerLost, TimeoutError, or what the tool raises."""
        raise NotImplementedError(f"{type(self).__name__} runs nothing")

    async def close(self) -> None:
        """End the session; later calls answer ``cancelled``."""
        self.closed = True

    async def _answer(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        if self.closed:
            return ToolResult(text="error: closed", error=ErrorKind.CANCELLED)
        role = Role.SUBAGENT if "/" in agent_id else Role.ORCHESTRATOR
        if call.name not in {tool.name for tool in self._offered[role]}:
            return ToolResult(text="error: unknown tool", error=ErrorKind.UNKNOWN_TOOL)
        try:
            async with asyncio.timeout(deadline_s):
                return await self.run(agent_id, call, deadline_s)
        except TimeoutError:
            return ToolResult(text="error: timeout", error=ErrorKind.TIMEOUT)
        except Refused as refused:
            return ToolResult(text=f"error: {reason(str(refused))}", error=refused.kind)
        except ServerLost as lost:
            return ToolResult(text=f"error: server ({reason(str(lost))})", error=ErrorKind.SERVER, machine=True)
        except Exception as error:
            return ToolResult(text=f"error: {reason(f'{type(error).__name__}: {error}')}", error=self.failed)

    def _cut(self, text: str) -> str:
        left = len(text) - self._result_chars
        return text if left <= 0 else f"{text[: self._result_chars]}\n[cut: {left} more characters]"


def reason(text: str) -> str:
    """The beginning of an error's ``text``, as one line."""
    line = " ".join(text.split())
    return line if len(line) <= _REASON else f"{line[:_REASON]}..."


def result_of(value: Any) -> ToolResult:
    """What a function returned as a result: a text as it is, a PNG file as a picture, all else as JSON."""
    if isinstance(value, ToolResult):
        return value
    if isinstance(value, bytes) and value.startswith(_PNG):
        return ToolResult(text="", images=(value,))
    return ToolResult(text=value if isinstance(value, str) else to_json(value).decode())
