"""An agent program as the environment: a command or a Python callable that speaks OpenAI's API.

The program gets one task a run, asks the policy at its door (``envs.driver.Door``) as often as it likes, in any
number of conversations, and ends. What it asks is recorded and trained. It may post its own reward; else the
answer is scored by the task's gold.

A command finds the task in ``PARL_PROMPT`` and ``PARL_TASK`` (JSON: ``key``, ``family``, ``prompt``, ``seed``,
``attempt``; never the gold), the policy in ``OPENAI_BASE_URL``, ``OPENAI_API_KEY`` and ``PARL_MODEL``, and where
to post its reward in ``PARL_REWARD_URL``. Its answer is what it writes to the file ``PARL_ANSWER``, or else its
standard output. A callable gets a :class:`Run` and returns the answer, or an ``envs.driver.Driven``.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from envs.base import ErrorKind, Role, Section, Task, ToolCall, ToolResult, ToolSpec
from envs.driver import Door, Driven
from envs.named import named
from envs.plugs.session import PlugEnvironment
from envs.plugs.threads import in_thread

_KEY = "envs.config.call"
_SAID = 2000  # characters of standard error that a failure shows
_MOST = 1 << 20  # bytes of standard output and of the answer's file that are read
_PASSED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "SSL_CERT_FILE")


class HarnessConfig(Section):
    """An agent program: give ``command`` or ``call``."""

    command: tuple[str, ...] = Field(default=(), description="the program and its arguments; python is parl's own")
    call: str | None = Field(default=None, description="a Python function instead: package.module:function")
    folder: Path | None = Field(default=None, description="where the command runs; null = an empty folder of its own")
    range: tuple[float, float] = Field(default=(0.0, 1.0), description="lowest and highest reward that it posts")
    env: dict[str, str] = Field(default_factory=dict, description="more variables of the command's environment")

    @model_validator(mode="after")
    def _one(self) -> HarnessConfig:
        if bool(self.command) == (self.call is not None):
            raise ValueError("give either command, a program and its arguments, or call, a package.module:function")
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range={list(self.range)} must be the lowest and the highest reward, in this order")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a callable gets: the task, and the policy's address, key and name for an OpenAI client."""

    task: Task
    url: str
    key: str
    model: str
    seed: int
    attempt: int


class HarnessEnvironment(PlugEnvironment):
    """One run of the program an episode; its tasks are the user's own."""

    Config = HarnessConfig  # type: ignore[assignment]
    repeatable = False  # a program cannot be continued, only run anew
    drives = True
    config: HarnessConfig

    def notes(self):
        """ValueError if there is no such function or program."""
        if self.config.call is not None:
            _function(self.config.call)
        elif not _found(self.config.command[0], self.config.folder, self.config.env):
            raise ValueError(
                f"envs.config.command: there is no program {self.config.command[0]}: install it, or write its whole"
                " path or, with a slash as in ./agent, the one from envs.config.folder"
            )
        yield from ()

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> HarnessSession:
        """A run of the program, which starts when it is driven."""
        return HarnessSession(self.config, task, seed, attempt)


class HarnessSession:
    """One run of the program (``envs.driver.Driver``)."""

    def __init__(self, config: HarnessConfig, task: Task, seed: int, attempt: int) -> None:
        self._config, self._task, self._seed, self._attempt = config, task, seed, attempt
        self.span = config.range

    def tools(self, role: Role) -> list[ToolSpec]:
        """None: the program brings its own."""
        return []

    async def call(self, agent_id: str, call: ToolCall, *, deadline_s: float) -> ToolResult:
        """Unknown, whatever it is."""
        return ToolResult(text="error: unknown tool", error=ErrorKind.UNKNOWN_TOOL)

    async def drive(self, door: Door) -> Driven:
        """Run the program; its failure is told, not raised."""
        if self._config.call is None:
            return await self._command(door)
        function = _function(self._config.call)
        run = Run(task=self._task, url=door.url, key=door.key, model=door.model, seed=self._seed, attempt=self._attempt)
        try:
            called = function(run) if inspect.iscoroutinefunction(function) else in_thread(function, run)
            result = await called
        except Exception as error:
            return Driven(failure=f"{type(error).__name__}: {error}")
        return result if isinstance(result, Driven) else Driven(answer="" if result is None else str(result))

    async def close(self) -> None:
        """Nothing stays open."""

    async def _command(self, door: Door) -> Driven:
        with tempfile.TemporaryDirectory(prefix="parl-harness-", ignore_cleanup_errors=True) as scratch:
            answer = Path(scratch) / "answer.txt"
            with (Path(scratch) / "stdout").open("w+b") as out, (Path(scratch) / "stderr").open("w+b") as err:
                program, *arguments = self._config.command
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable if program == "python" else program, *arguments),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    env=self._environment(door, answer),
                    cwd=self._config.folder or scratch,
                    start_new_session=True,
                )
                try:
                    code = await process.wait()
                finally:  # also what the program left running, and when the episode's deadline passes
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGKILL)
                    await process.wait()
                said = answer.read_bytes()[:_MOST] if answer.is_file() else _begin(out)
                text = said.decode("utf-8", "replace").strip()
                if code:
                    tail = _end(err).decode("utf-8", "replace").strip()
                    return Driven(answer=text, failure=f"{self._config.command[0]} ended with code {code}: {tail}")
                return Driven(answer=text)

    def _environment(self, door: Door, answer: Path) -> Mapping[str, str]:
        task = {"key": self._task.key, "family": self._task.family, "prompt": self._task.prompt}
        own = {name: os.environ[name] for name in _PASSED if name in os.environ}  # no keys of ours
        return own | {
            "OPENAI_BASE_URL": door.url,
            "OPENAI_API_BASE": door.url,
            "OPENAI_API_KEY": door.key,
            "PARL_MODEL": door.model,
            "PARL_REWARD_URL": f"{door.url}/parl/reward",
            "PARL_PROMPT": self._task.prompt.replace("\0", " "),
            "PARL_TASK": json.dumps(task | {"seed": self._seed, "attempt": self._attempt}),
            "PARL_ANSWER": str(answer),
            **self._config.env,
        }


def _found(program: str, folder: Path | None, env: Mapping[str, str]) -> bool:
    """Whether ``program`` can be started, as a process does that runs in ``folder``."""
    if program == "python":
        return True
    if "/" in program:
        return shutil.which((folder or Path("/nowhere")).absolute() / program) is not None
    return shutil.which(program, path=env.get("PATH")) is not None


def _function(name: str) -> Any:
    found = named(name, _KEY)
    if not callable(found) or inspect.isclass(found):
        raise ValueError(f'{_KEY} = "{name}": is {type(found).__name__}, not a function that takes a run')
    return found


def _begin(file: Any) -> bytes:
    file.seek(0)
    return file.read(_MOST)


def _end(file: Any) -> bytes:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _SAID))
    return file.read()
