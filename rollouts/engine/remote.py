"""The rollout workers' side of engine actors. No torch.

One Ray call per request would cost more than decoding a token, so both directions are batched: requests of
one turn of the event loop share a call, and one long poll returns everything that has finished.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import suppress
from typing import Any
from zlib import crc32

from rollouts.engine.base import Completion, Pictures, Sampling
from rollouts.faults import EngineSilent, longest

POLL_S = 2.0  # longest wait of a poll
_GRACE_S = 30.0
_NUMBERS = itertools.count()

# id, prompt, sampling, session, deadline in seconds, pictures
Request = tuple[int, list[int], Sampling, str, float, Pictures]


class RemoteEngine:
    """``Engine`` over the replicas of one pool; a session stays with its replica.

    Replicas know each object by a name of its own: one that is replaced may still poll, and must not take the answers
    of its successor.
    """

    def __init__(self, replicas: list[Any], client: str) -> None:
        name = f"{client}/{next(_NUMBERS)}"
        self._links = [_Link(replica, name) for replica in replicas]
        self._asking, self._area, self._since, self._changed = 0, 0.0, 0.0, 0.0

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """See ``Engine``; raises the replica's errors, Ray's if it died, EngineSilent if it hangs."""
        self._count(1)
        try:
            return await self._link(session).generate(prompt, sampling, session, deadline_s, media)
        finally:
            self._count(-1)

    async def release(self, session: str) -> None:
        """End the session."""
        self._link(session).release(session)

    def stalled(self, since: float) -> float:
        """The longest silence of a replica after ``since`` (``time.monotonic``); 0 without one."""
        return max(link.stalled(since) for link in self._links)

    def load(self) -> float:
        """Mean number of running requests since the last call of this method."""
        self._count(0)
        seconds, area = self._changed - self._since, self._area
        self._since, self._area = self._changed, 0.0
        return area / seconds if seconds > 0 else 0.0

    def _count(self, change: int) -> None:
        now = asyncio.get_running_loop().time()
        if self._changed:
            self._area += self._asking * (now - self._changed)
        else:
            self._since = now
        self._changed, self._asking = now, self._asking + change

    async def interrupt(self) -> None:
        """Interrupt all running requests. One that has not arrived yet is not affected: call again."""
        for link in self._links:
            if link.waits:
                with suppress(Exception):  # waiters of a dead replica get its error from their poll
                    await asyncio.wait_for(link.interrupt(), _GRACE_S)

    def _link(self, session: str) -> _Link:
        return self._links[crc32(session.encode()) % len(self._links)]


class _Link:
    """Batched traffic with one replica."""

    def __init__(self, replica: Any, client: str) -> None:
        self._replica, self._client = replica, client
        self._waiting: dict[int, asyncio.Future[Completion]] = {}
        self._requests: list[Request] = []
        self._released: list[str] = []
        self._next = 0
        self._flushing = False
        self._poller: asyncio.Task[None] | None = None
        self._asked: float | None = None  # when the current poll was sent
        self._silences: list[tuple[float, float]] = []  # of polls: when a replica should have answered, and when it did

    async def generate(
        self, prompt: list[int], sampling: Sampling, session: str, deadline_s: float, media: Pictures
    ) -> Completion:
        self._next += 1
        identifier, future = self._next, asyncio.get_running_loop().create_future()
        self._waiting[identifier] = future
        self._requests.append((identifier, list(prompt), sampling, session, deadline_s, media))
        self._flush_soon()
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        clock = asyncio.timeout(deadline_s + _GRACE_S)
        try:  # the replica keeps the deadline; the grace is for transfer
            async with clock:
                return await future
        except TimeoutError as error:
            if clock.expired():
                raise EngineSilent(f"an engine did not answer within {deadline_s + _GRACE_S:.0f} s") from error
            raise
        finally:
            self._waiting.pop(identifier, None)

    def release(self, session: str) -> None:
        self._released.append(session)
        self._flush_soon()

    @property
    def waits(self) -> bool:
        return bool(self._waiting)

    def interrupt(self) -> Any:
        return self._replica.interrupt.remote(self._client)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        requests, released = self._requests, self._released
        self._requests, self._released = [], []
        self._replica.submit.remote(self._client, requests, released)

    def stalled(self, since: float) -> float:
        """See :meth:`RemoteEngine.stalled`."""
        now = time.monotonic()
        return longest(self._silences, since, now if self._asked is None else self._asked + POLL_S, now)

    async def _finished(self) -> list[tuple[int, Completion | Exception]]:
        """The result of a poll. EngineSilent if none comes back."""
        self._asked, clock = time.monotonic(), asyncio.timeout(POLL_S + _GRACE_S)
        try:
            async with clock:
                return await self._replica.poll.remote(self._client)
        except TimeoutError as error:
            if clock.expired():
                raise EngineSilent(f"an engine did not answer within {POLL_S + _GRACE_S:.0f} s") from error
            raise
        finally:
            due = self._asked + POLL_S
            if longest([], 0.0, due, now := time.monotonic()):
                self._silences = [*self._silences[-99:], (due, now)]
            self._asked = None

    async def _poll(self) -> None:
        while self._waiting:
            try:
                finished = await self._finished()
            except Exception as error:  # the replica died or hangs: tell all waiters
                for future in self._waiting.values():
                    if not future.done():
                        future.set_exception(error)
                return
            for identifier, result in finished:
                future = self._waiting.get(identifier)
                if future is None or future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
