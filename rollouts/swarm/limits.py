"""What bounds a swarm from outside: places in a queue, deadlines, and a switch that stops everything.

All of it belongs to one worker and its event loop. Waiting is first come, first served.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext


class Slots:
    """How many sub-agents and tool calls of all episodes of a worker may be under way at once; None = any number.

    An orchestrator needs no slot: it only waits, and would otherwise wait for sub-agents that wait for it.
    """

    def __init__(self, subagents: int | None = None, tool_calls: int | None = None) -> None:
        self.subagents = _gate(subagents)
        self.tool_calls = _gate(tool_calls)


def _gate(places: int | None) -> AbstractAsyncContextManager[None]:
    return nullcontext() if places is None else asyncio.Semaphore(places)


class Deadline:
    """The tightest of several named points in time on the loop's clock. Enter it; ``name`` says which it was.

    Raises TimeoutError when it passes, and then only is ``passed`` true: others that come from inside are not ours.
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


class StopSwitch:
    """Ends all episodes that run under it, at once, with what they have."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[Deadline] = set()

    def enter(self, deadline: Deadline) -> None:
        """``deadline`` ends when the switch is thrown; it may have been thrown already."""
        self._running.add(deadline)
        if self.stopped:
            deadline.tighten(STOPPED, 0.0)

    def leave(self, deadline: Deadline) -> None:
        """It has ended by itself."""
        self._running.discard(deadline)

    def stop(self) -> None:
        """Throw it."""
        self.stopped = True
        for deadline in self._running:
            deadline.tighten(STOPPED, 0.0)


STOPPED = "stopped"  # a limit's name: the run was stopped
