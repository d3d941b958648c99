"""An engine as a Ray actor: one replica of a pool, called through ``rollouts.engine.remote``. No torch."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from rollouts.beat import AsyncBeating
from rollouts.engine.base import Completion, Place, PoolEngine, Update
from rollouts.engine.remote import POLL_S, Request


class EngineActor(AsyncBeating):
    """One replica: ``kind``'s engine for ``place``, shared by several workers (clients) by name."""

    def __init__(self, kind: type[PoolEngine], place: Place) -> None:
        self._kind, self._place = kind, place
        self._engine = kind.open(place)
        self._done: dict[str, asyncio.Queue[tuple[int, Completion | Exception]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: dict[str, set[str]] = {}  # running sessions by client
        self._told: dict[str, int] = {}  # positions per session whose experts the learner must choose

    async def update(
        self,
        update: Update,
        weights: Mapping[str, np.ndarray] | None = None,
        base: Mapping[str, np.ndarray] | None = None,
    ) -> int:
        """Apply ``update``, whose arrays Ray carries beside it; returns the version now served."""
        await self._engine.update(replace(update, weights=weights, base=base))
        return self._engine.policy_version

    async def assign(self, pool: str) -> bool:
        """Serve another pool from here on."""
        await self._engine.assign(pool)
        self._place = replace(self._place, pool=pool)
        return True

    async def submit(self, client: str, requests: list[Request], released: list[str]) -> None:
        """Start ``requests`` and forget the sessions ``released``."""
        for session in released:
            self._told.pop(session, None)
            await self._engine.release(session)
        for request in requests:
            task = asyncio.create_task(self._run(client, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def poll(self, client: str) -> list[tuple[int, Completion | Exception]]:
        """All results for ``client`` since the last poll; waits up to two seconds for one."""
        queue = self._queue(client)
        try:
            items = [await asyncio.wait_for(queue.get(), POLL_S)]
        except TimeoutError:
            return []
        while not queue.empty():
            items.append(queue.get_nowait())
        return items

    async def interrupt(self, client: str) -> None:
        """Interrupt the running requests of ``client``; they return their tokens so far."""
        await self._engine.interrupt(self._asking.get(client, set()))

    async def statistics(self) -> dict[str, float]:
        """The engine's counters."""
        return self._engine.statistics()

    def _step_s(self) -> float:
        return self._engine.step_s()

    def _queue(self, client: str) -> asyncio.Queue[tuple[int, Completion | Exception]]:
        return self._done.setdefault(client, asyncio.Queue())

    async def _run(self, client: str, request: Request) -> None:
        identifier, prompt, sampling, session, deadline_s, media = request
        asking = self._asking.setdefault(client, set())
        asking.add(session)
        try:
            result: Completion | Exception = await self._engine.generate(
                prompt, sampling, session=session, deadline_s=deadline_s, media=media
            )
            if self._place.routes and not self._kind.routes:
                result = self._with_free_routes(result, session, len(prompt))
        except Exception as error:  # travels to the caller, who decides
            result = error
        asking.discard(session)
        self._queue(client).put_nowait((identifier, result))

    def _with_free_routes(self, answer: Completion, session: str, read: int) -> Completion:
        """Set every expert of positions fed since the last answer to -1: the learner chooses its own."""
        start, end = self._told.get(session, 0), read + len(answer.tokens) - 1
        self._told[session] = max(start, end)
        routes = self._place.model.routes
        shape = (max(end - start, 0), routes.layers, routes.chosen)
        return replace(answer, routes=np.full(shape, -1, np.int16), routes_start=start)
