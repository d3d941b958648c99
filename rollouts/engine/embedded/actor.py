"""The embedded engine as a Ray actor: one replica of a pool. Workers reach it through ``rollouts.engine.remote``."""

from __future__ import annotations

import asyncio
from typing import Any

from model.kimi.config import ModelConfig
from model.kimi.decoder import Weights
from model.kimi.lora import merged
from rollouts.beat import AsyncBeating
from rollouts.engine.base import Completion
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.engine.remote import POLL_S, Request


class EngineActor(AsyncBeating):
    """One replica. Clients are known by name, so that several workers can share it."""

    def __init__(self, config: ModelConfig, *, record_routes: bool) -> None:
        self._begin(self._make(config, record_routes))

    def _begin(self, engine: Any) -> None:
        self._engine = engine
        self._done: dict[str, asyncio.Queue[tuple[int, Completion | Exception]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: dict[str, set[str]] = {}  # sessions that generate now, by client

    def _make(self, config: ModelConfig, record_routes: bool) -> EmbeddedEngine:
        return EmbeddedEngine(config, record_routes=record_routes)

    async def update(self, version: int, weights: Weights, base: Weights | None = None, in_flight: bool = False) -> int:
        """Take new weights, or adapters that ``base`` is given for, ``in_flight`` also while requests run.

        Returns the version now served.
        """
        whole = weights if base is None else merged(base, weights)
        await self._engine.update(version, whole, in_flight=in_flight)
        return self._engine.policy_version

    async def assign(self, *, record_routes: bool) -> bool:
        """Serve another pool from here on: one whose completions carry routes, or not."""
        self._engine.record_routes(record_routes)
        return True

    async def submit(self, client: str, requests: list[Request], released: list[str]) -> None:
        """Begin ``requests`` and forget the sessions ``released``."""
        for session in released:
            await self._engine.release(session)
        for request in requests:
            task = asyncio.create_task(self._run(client, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def poll(self, client: str) -> list[tuple[int, Completion | Exception]]:
        """All that has finished for ``client`` since the last poll; waits up to two seconds for something."""
        queue = self._queue(client)
        try:
            items = [await asyncio.wait_for(queue.get(), POLL_S)]
        except TimeoutError:
            return []
        while not queue.empty():
            items.append(queue.get_nowait())
        return items

    async def interrupt(self, client: str) -> None:
        """End what ``client``'s sessions generate now; they get what there is."""
        await self._engine.interrupt(self._asking.get(client, set()))

    async def statistics(self) -> dict[str, float]:
        """The engine's counters."""
        return self._engine.statistics()

    def _step_s(self) -> float:
        return self._engine.step_s() if isinstance(self._engine, EmbeddedEngine) else 0.0

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
        except Exception as error:  # travels to the caller, who decides
            result = error
        asking.discard(session)
        self._queue(client).put_nowait((identifier, result))
