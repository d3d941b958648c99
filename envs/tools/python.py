"""The tool ``python``: code in the sandbox, in an interpreter that each agent keeps for the episode."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Literal

from pydantic import Field

from envs.base import ErrorKind, Section, ToolCall, ToolResult
from envs.plugs.session import Refused, ServerLost
from envs.sandbox import Limits, Ran, Sandbox, SandboxError
from envs.sandbox.sandbox import Session
from envs.tools.kit import Kit, Opened, spec

_INTERPRETERS = 64  # kept at once by an environment; the one that was not used for longest goes first
_RESTARTED = "[the interpreter was restarted; variables are lost]"


class PythonConfig(Section):
    """Python in the sandbox."""

    required: Literal["bubblewrap", "landlock", "rlimits"] = Field(
        default="landlock",
        description="the weakest isolation that will do; the strongest there is is taken",
    )
    call_s: float = Field(default=10.0, gt=0, description="seconds for one call")
    memory_mb: int = Field(default=512, ge=64, description="memory of an agent's code")
    keep: bool = Field(default=True, description="variables stay between the calls of an agent")
    at_once: int = Field(default=8, gt=0, description="calls that run at the same time")
    readable: tuple[str, ...] = Field(default=(), description="folders of the host that the code may read")
    packages: tuple[str, ...] = Field(default=(), description="folders that Python imports from, such as site-packages")


class PythonKit(Kit):
    """One sandbox for an environment."""

    specs = (
        spec(
            "python",
            "Run Python code; what it prints and the value of its last expression are returned. There is no network.",
            ("code",),
            code={"type": "string"},
        ),
    )

    def __init__(self, config: PythonConfig) -> None:
        self.config, self.stateless = config, not config.keep
        self._sandbox: Sandbox | None = None
        self._slots: asyncio.Semaphore | None = None
        self.kept: OrderedDict[tuple[object, str], Session] = OrderedDict()
        self.lost: set[tuple[object, str]] = set()  # ended while their agents go on: the next result says so

    def check(self) -> None:
        """ValueError if the machine cannot isolate as well as ``required``."""
        try:
            self._made()
        except SandboxError as error:
            raise ValueError(f"envs.config.python.required = {self.config.required}: {error}") from None

    @property
    def level(self) -> str:
        """The level of isolation that the machine gives."""
        return self._made().level

    def open(self, folder: str | None) -> Opened:
        """See :class:`Kit`."""
        return _Python(self, folder)

    async def close(self) -> None:
        """End all interpreters."""
        sandbox, self._sandbox, self._slots = self._sandbox, None, None
        await self.forget(list(self.kept))
        if sandbox:
            await sandbox.close()

    async def forget(self, keys: list[tuple[object, str]]) -> None:
        """End the interpreters of these episodes and agents."""
        self.lost.difference_update(keys)
        sessions = [self.kept.pop(key) for key in keys if key in self.kept]
        await asyncio.gather(*(session.close() for session in sessions))

    async def ran(self, key: tuple[object, str], code: str, folder: str | None, deadline_s: float) -> tuple[Ran, bool]:
        """Run ``code`` in the interpreter of ``key``, or in a fresh one. Also whether earlier variables were lost."""
        self._slots = self._slots or asyncio.Semaphore(self.config.at_once)
        async with self._slots:
            try:
                if not self.config.keep:
                    return await self._made().run(code, deadline_s=deadline_s, folder=folder), False
                return await self._continued(key, code, folder, deadline_s)
            except SandboxError as error:
                raise ServerLost(str(error)) from error

    async def _continued(
        self, key: tuple[object, str], code: str, folder: str | None, deadline_s: float
    ) -> tuple[Ran, bool]:
        session = self.kept.setdefault(key, self._made().session(folder))
        self.kept.move_to_end(key)
        if len(self.kept) > _INTERPRETERS:
            oldest, evicted = self.kept.popitem(last=False)
            self.lost.add(oldest)
            await evicted.close()
        try:
            ran = await session.run(code, deadline_s=deadline_s)
        except BaseException:  # cancelled halfway: a session ends its interpreter
            self.lost.add(key)
            raise
        lost = key in self.lost
        self.lost.discard(key)
        return ran, lost

    def _made(self) -> Sandbox:
        if self._sandbox is None:
            given = self.config
            limits = Limits(memory=given.memory_mb << 20)
            self._sandbox = Sandbox(
                required=given.required, limits=limits, readable=given.readable, path=given.packages
            )
        return self._sandbox


class _Python(Opened):
    def __init__(self, kit: PythonKit, folder: str | None) -> None:
        self._kit, self._folder = kit, folder

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        code = call.arguments.get("code")
        if not isinstance(code, str) or not code.strip():
            raise Refused(ErrorKind.BAD_ARGS, "code must be a text")
        seconds = min(self._kit.config.call_s, deadline_s)
        ran, lost = await self._kit.ran((self, agent_id), code, self._folder, seconds)
        text = f"{_RESTARTED}\n{_shown(ran, seconds)}" if lost else _shown(ran, seconds)
        return ToolResult(text=text, error=ErrorKind.TIMEOUT if ran.timed_out else None)

    async def cancel(self, agent_id: str) -> None:
        await self._kit.forget([(self, agent_id)])

    async def close(self) -> None:
        await self._kit.forget([key for key in {*self._kit.kept, *self._kit.lost} if key[0] is self])


def _shown(ran: Ran, seconds: float) -> str:
    parts = [ran.stdout.rstrip("\n"), ran.stderr.rstrip("\n")]
    if ran.why:
        what = f"after {seconds:g} s" if ran.timed_out else f"by the limit on {ran.why}" if ran.why != "killed" else ""
        parts.append(f"[stopped {what}; variables are lost]".replace(" ;", ";"))
    elif ran.code and not ran.stderr:
        parts.append(f"[exit code {ran.code}]")
    return "\n".join(filter(None, parts)) or "[no output]"
