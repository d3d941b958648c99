"""Limits of a swarm: slots, deadlines, and a switch that stops everything.

They belong to one worker and its event loop. Waiting is first come, first served.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext


class Slots:
    """Sub-agents and tool calls of all episodes of a worker that may run at once; None = any number.

    An orchestrator needs no slot: it only waits, and would deadlock with the sub-agents that it waits for.
    """

    def __init__(self, subagents: int | None = None, tool_calls: int | None = None) -> None:
        self.subagents = _gate(subagents)
        self.tool_calls = _gate(tool_calls)


def _gate(places: int | None) -> AbstractAsyncContextManager[None]:
    return nullcontext() if places is None else asyncio.Semaphore(places)


class Deadline:
    """The tightest of several named deadlines on the loop's clock. Enter it; ``name`` says which it was.

    Raises TimeoutError when it passes; only then is ``passed`` true, not after a TimeoutError from inside.
    """

    def __init__(self, name: str = "", when: float | None = None) -> None:
        self.name = name if when is not None else ""
        self._clock = asyncio.timeout_at(when)

    async def __aenter__(self) -> Deadline:
        await self._clock.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> bool | None:
        return await self._clock.__aexit__(*error)  # pyright: ignore[reportArgumentType]

    @property
    def passed(self) -> bool:
        """Whether it was this deadline that ended the block."""
        return self._clock.expired()

    def tighten(self, name: str, seconds: float | None) -> None:
        """Also end ``seconds`` from now (None: never), if that is sooner."""
        if seconds is None:
            return
        when, now = self._clock.when(), asyncio.get_running_loop().time() + seconds
        if when is None or now < when:
            self.name = name
            self._clock.reschedule(now)

    def extend(self, seconds: float) -> None:
        """End ``seconds`` later than set."""
        when = self._clock.when()
        if when is not None:
            self._clock.reschedule(when + seconds)


class StopSwitch:
    """Stops all episodes that run under it at once, keeping their turns."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[Deadline] = set()

    def enter(self, deadline: Deadline) -> None:
        """Let the switch end ``deadline``, at once if it is already thrown."""
        self._running.add(deadline)
        if self.stopped:
            deadline.tighten(STOPPED, 0.0)

    def leave(self, deadline: Deadline) -> None:
        """Unregister ``deadline``."""
        self._running.discard(deadline)

    def stop(self) -> None:
        """Throw the switch."""
        self.stopped = True
        for deadline in self._running:
            deadline.tighten(STOPPED, 0.0)


STOPPED = "stopped"  # a limit's name: the run was stopped
