"""An HTTP server as one replica of a pool: the client, and the delivery of weights to it.

Weights may change while episodes run: from then on requests wait, those under way get half a minute to end, the rest is
cut and asked for again under the new weights. So each turn is of one version, and no cached position of older weights
is continued. An interrupted turn returns no tokens: it is sampled from its beginning later.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Container
from enum import Enum, auto
from typing import Any

from model.family import Routes
from rollouts.engine.base import Completion, Finish, Pictures, Place, PoolEngine, Sampling, Update
from rollouts.engine.servers.dialects import DIALECTS, Dialect
from rollouts.engine.servers.http import HttpEngine
from rollouts.engine.servers.weight_update import Deliverer

_DRAIN_S = 30.0  # for turns under way, before an update cuts them


class _Cut(Enum):
    """Why a request was cut."""

    AGAIN = auto()  # for an update: it is sent again
    HALT = auto()  # by the caller


class ServedEngine(HttpEngine, PoolEngine):
    """The client of a server that takes weights as folders."""

    _deliverer: Deliverer

    def __init__(self, url: str, dialect: Dialect, **settings: Any) -> None:
        super().__init__(url, dialect, **settings)
        self._open = asyncio.Event()
        self._open.set()
        self._in_flight = False  # the current update may cut requests
        self._sent: dict[str, asyncio.Task[Completion]] = {}  # by session
        self._held: dict[str, asyncio.Task[bool]] = {}  # by session: not sent before the update is over
        self._cut: dict[str, _Cut] = {}

    @classmethod
    def of(cls, place: Place, dialect: str) -> ServedEngine:
        """The server at ``place.url``; requests routes for the policy pool only.

        ValueError if its key may not be sent.
        """
        http, model = place.rollouts.http, place.model
        none = Routes(layers=0, chosen=0, experts=0)
        routes = model.routes or none
        asked = routes if place.routes else none
        engine = cls(
            place.url,
            DIALECTS[dialect],
            pool=place.pool,
            longest=model.max_position_embeddings,
            layers=asked.layers,
            experts=asked.chosen,
            dense=routes.first,
            live_routes=http.without_routes == "live",
            vocabulary=model.vocab_size,
            routed=routes.experts,
            api_key=os.environ.get(http.api_key_env or ""),
            key_name=http.api_key_env or "",
        )
        engine._deliverer = Deliverer(engine, http)
        return engine

    async def generate(
        self, prompt: list[int], sampling: Sampling, *, session: str, deadline_s: float, media: Pictures = ()
    ) -> Completion:
        """See ``HttpEngine``; waits while weights change."""
        until = time.monotonic() + deadline_s
        while True:
            if not self._open.is_set() and not await self._admitted(session, until):
                return self._halted()
            left = until - time.monotonic()
            asked = super().generate(prompt, sampling, session=session, deadline_s=left, media=media)
            sent = self._sent[session] = asyncio.create_task(asked)
            try:
                return await sent
            except asyncio.CancelledError:
                why = self._cut.pop(session, None)
                if why is None:  # the caller has gone
                    raise
                if why is _Cut.HALT:
                    return self._halted()
            finally:
                self._sent.pop(session, None)
                self._cut.pop(session, None)  # cut as its answer came: that is no reason to cut the next turn

    async def _admitted(self, session: str, until: float) -> bool:
        """Wait until the update is over; False if the request is interrupted before. TimeoutError at ``until``."""
        held = self._held[session] = asyncio.create_task(self._until_open())
        try:
            return await asyncio.wait_for(held, max(until - time.monotonic(), 0.0))
        except asyncio.CancelledError:
            if self._cut.pop(session, None) is None:  # the caller has gone
                raise
            return False
        finally:
            self._held.pop(session, None)

    async def _until_open(self) -> bool:
        return await self._open.wait()

    def _halted(self) -> Completion:
        return Completion(tokens=[], logprobs=[], finish=Finish.INTERRUPTED, policy_version=self.policy_version)

    async def interrupt(self, sessions: Container[str]) -> None:
        """Requests of ``sessions``, running or held back by an update, return at once, without tokens."""
        for session, sent in [*self._sent.items(), *self._held.items()]:
            if session in sessions:
                self._cut[session] = _Cut.HALT
                sent.cancel()

    async def quiet(self) -> None:
        """No request is under way when this returns, and none is sent before the update is over."""
        if not self._in_flight:
            return await super().quiet()
        self._open.clear()
        if self._sent:
            await asyncio.wait(list(self._sent.values()), timeout=_DRAIN_S)
        for session, sent in list(self._sent.items()):
            self._cut.setdefault(session, _Cut.AGAIN)
            sent.cancel()
        if self._sent:
            await asyncio.wait(list(self._sent.values()))
        await super().quiet()

    async def update(self, update: Update) -> None:
        """Bring the server to ``update.delivery``. Raises StaleWeights, EngineGone, TimeoutError."""
        assert update.delivery is not None
        self._in_flight = update.in_flight
        try:
            await self._deliverer.deliver(update.delivery)
        finally:
            self._open.set()

    def statistics(self) -> dict[str, float]:
        """The client's counters; of the last update the probe's mean difference, whether it was in place, the seconds
        that the server was paused, the bytes and seconds of its pull; restarts so far."""
        one = self._deliverer
        updates = {"probe_gap": one.gap, "in_place": one.in_place, "server_restarts": one.restarts}
        updates |= {"pause_s": one.pause_s, "pulled_bytes": one.pulled_bytes, "pull_s": one.pull_s}
        return {**super().statistics(), **updates}
