"""Runs untrusted code in fresh, isolated workers: ``Sandbox.run``, or a ``Session`` that keeps its state."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import signal
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from envs.sandbox import levels
from envs.sandbox.job import Limits, order
from envs.sandbox.levels import CONTAINER, LEVELS, Place

_START_S = 30.0  # a worker's start on a busy machine
_GRACE_S = 5.0  # past the deadline that the worker itself keeps
_FRAME = 1 << 28
_users = itertools.count(os.getpid())


class SandboxError(RuntimeError):
    """The machine cannot run the code: a level that it does not give, or a worker that does not start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How a run ended. ``code``: its exit code, -N for signal N. ``why``: the limit that stopped it, if one did.

    ``why`` is ``deadline``, ``memory``, ``disk``, ``files`` or ``killed``. ``files``: those asked for by
    ``collect`` that exist. ``absent``: the program itself could not be started, which its code (126 or 127) alone
    does not tell: a program may end with it too.
    """

    stdout: str
    stderr: str
    code: int
    why: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)
    absent: bool = False

    @property
    def timed_out(self) -> bool:
        """Whether the deadline ended it."""
        return self.why == "deadline"


class _Worker:
    """One started worker process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def read(self, deadline_s: float) -> dict[str, Any]:
        """The next frame; SandboxError if none comes."""
        source = self.process.stdout
        assert source
        try:
            async with asyncio.timeout(deadline_s):
                (length,) = struct.unpack(">I", await source.readexactly(4))
                if length > _FRAME:
                    raise SandboxError(f"a worker announces {length} bytes")
                return json.loads(await source.readexactly(length))
        except (asyncio.IncompleteReadError, TimeoutError, ValueError) as error:
            raise SandboxError(f"the sandbox's worker is lost ({type(error).__name__}){await self._said()}") from error

    async def write(self, value: dict[str, Any]) -> None:
        """Send a frame."""
        body, target = json.dumps(value).encode(), self.process.stdin
        assert target
        with contextlib.suppress(ConnectionError):  # what it said comes with the next read
            target.write(struct.pack(">I", len(body)) + body)
            await target.drain()

    async def end(self) -> None:
        """Close its input, which ends it and all that it started; kill it if it stays."""
        if self.process.stdin:
            self.process.stdin.close()
        try:
            async with asyncio.timeout(_GRACE_S):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            await self.process.wait()

    async def _said(self) -> str:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                text = (await self.process.stderr.read(2000)).decode("utf-8", "replace") if self.process.stderr else ""
                return f": {text.strip()}" if text.strip() else ""
        return ""


class Session:
    """One interpreter that keeps its state between runs; of one caller at a time."""

    def __init__(self, sandbox: Sandbox, folder: str | None) -> None:
        self._sandbox, self._folder, self._worker = sandbox, folder, None
        self._lock = asyncio.Lock()

    async def run(self, code: str, *, deadline_s: float, files: Mapping[str, bytes | str] | None = None) -> Ran:
        """Run ``code`` after what ran before. When a limit stops it, the state is lost; ``sys.exit`` keeps it."""
        async with self._lock:
            if self._worker is None:
                self._worker = await self._sandbox._take(self._folder, deadline_s)
            try:
                return await self._sandbox._ask(self._worker, code, deadline_s, files, keep=True)
            except BaseException:
                await self._drop()
                raise

    async def close(self) -> None:
        """End the interpreter; safe to call twice."""
        async with self._lock:
            await self._drop()

    async def _drop(self) -> None:
        worker, self._worker = self._worker, None
        if worker:
            await worker.end()


class Sandbox:
    """Runs untrusted code. Each run has a worker of its own; ``warm`` ones wait, started.

    ``required``: the weakest level that will do (``bubblewrap``, ``landlock``, ``rlimits``, strongest first;
    or ``container``, which is only taken by name). ``level``: exactly this one. Without either the strongest
    that the machine gives is taken; :attr:`level` tells. ``readable``: host files and folders that the code
    may read. ``path``: those of them that Python imports from. Bound to the event loop of its first run.
    """

    def __init__(
        self,
        *,
        limits: Limits | None = None,
        required: str = "rlimits",
        level: str | None = None,
        python: str = sys.executable,
        readable: Sequence[str] = (),
        path: Sequence[str] = (),
        image: str = "",
        warm: int = 1,
    ) -> None:
        for name in filter(None, (required, level)):
            if name not in (*LEVELS, CONTAINER):
                raise ValueError(f"there is no level {name}: {', '.join((*LEVELS, CONTAINER))}")
        self.limits, self._path, self._warm = limits or Limits(), list(path), warm
        given = (self.limits.disk, self.limits.memory, self.limits.processes)
        self._place = Place(python, (*readable, *path), None, image, *given)
        wanted = (level,) if level else (CONTAINER,) if required == CONTAINER else LEVELS[: LEVELS.index(required) + 1]
        reasons = {}
        for name in wanted:
            reasons[name] = levels.reason_against(name, python, image)
            if not reasons[name]:
                self._level = name
                break
        else:
            raise SandboxError("; ".join(f"no sandbox of level {name}: {reason}" for name, reason in reasons.items()))
        self._idle: list[asyncio.Task[_Worker]] = []
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def level(self) -> str:
        """The level of isolation of every run."""
        return self._level

    async def run(
        self,
        code_or_argv: str | Sequence[str],
        *,
        deadline_s: float,
        files: Mapping[str, bytes | str] | None = None,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        collect: Sequence[str] = (),
        folder: str | None = None,
    ) -> Ran:
        """Run Python code, or a program by its arguments, in a fresh worker; returns within the deadline.

        ``files``: put into the working folder before. ``collect``: names to read there afterwards.
        ``folder``: a host's folder to work in, which every user may write to. SandboxError is the
        machine's fault, never the code's.
        """
        worker = await self._take(folder, deadline_s)
        try:
            given = {"stdin": stdin, "env": dict(env or {}), "collect": list(collect)}
            return await self._ask(worker, code_or_argv, deadline_s, files, **given)
        finally:
            self._later(worker.end())

    def session(self, folder: str | None = None) -> Session:
        """An interpreter that keeps its state; it starts with its first run."""
        return Session(self, folder)

    async def warm_up(self) -> None:
        """Start the workers that wait, and wait for them."""
        self._refill()
        await asyncio.gather(*self._idle)

    async def close(self) -> None:
        """End all waiting workers; runs under way end by themselves."""
        idle, self._idle, self._warm = self._idle, [], 0
        for worker in await asyncio.gather(*idle, return_exceptions=True):
            if isinstance(worker, _Worker):
                self._later(worker.end())
        await asyncio.gather(*self._ending)

    async def __aenter__(self) -> Sandbox:
        return self

    async def __aexit__(self, *given: object) -> None:
        await self.close()

    async def _take(self, folder: str | None, deadline_s: float) -> _Worker:
        if folder is not None or not self._idle:
            worker = await self._start(folder)
        else:
            worker = await self._idle.pop(0)
        self._refill()
        return worker

    def _refill(self) -> None:
        while len(self._idle) < self._warm:
            self._idle.append(asyncio.create_task(self._start(None)))

    async def _start(self, folder: str | None) -> _Worker:
        place = Place(**{**vars(self._place), "folder": folder})
        pipe = asyncio.subprocess.PIPE
        line = levels.command(self._level, place)
        environment = {} if self._level != CONTAINER else {"PATH": os.environ.get("PATH", "")}
        process = await asyncio.create_subprocess_exec(
            *line, stdin=pipe, stdout=pipe, stderr=pipe, env=environment, cwd="/", start_new_session=True
        )
        worker = _Worker(process)
        setup = levels.setup(self._level, place, levels.users(next(_users)))
        setup["rules"] |= self.limits.rules(3600.0)
        await worker.write({**setup, "output": self.limits.output, "inodes": self.limits.inodes})
        try:
            await worker.read(_START_S)
        except BaseException:
            await worker.end()
            raise
        return worker

    async def _ask(
        self,
        worker: _Worker,
        work: str | Sequence[str],
        deadline_s: float,
        files: Mapping[str, bytes | str] | None,
        **given: Any,
    ) -> Ran:
        data = {name: value.encode() if isinstance(value, str) else value for name, value in (files or {}).items()}
        packed = {name: base64.b64encode(value).decode() for name, value in data.items()}
        job = order(work, deadline_s=deadline_s, files=packed, path=self._path, **given)
        await worker.write(job)
        try:
            answer = await worker.read(deadline_s + _GRACE_S)
        except SandboxError:  # killed or stopped from inside: the code's doing, not the machine's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            return Ran(stdout="", stderr="", code=-signal.SIGKILL, why="killed")
        if "failed" in answer:
            raise SandboxError(answer["failed"])
        found = {name: base64.b64decode(value) for name, value in answer["files"].items()}
        texts = {"stdout": answer["stdout"], "stderr": answer["stderr"]}
        return Ran(**texts, code=answer["code"], why=answer["why"], files=found, absent=answer["absent"])

    def _later(self, ending: Any) -> None:
        task = asyncio.create_task(ending)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
