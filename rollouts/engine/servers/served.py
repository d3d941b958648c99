"""An HTTP server as one replica of a pool: the client, and the delivery of weights to it."""

from __future__ import annotations

import os

from model.family import Routes
from rollouts.engine.base import Place, PoolEngine, Update
from rollouts.engine.servers.dialects import DIALECTS
from rollouts.engine.servers.http import HttpEngine
from rollouts.engine.servers.weight_update import Deliverer


class ServedEngine(HttpEngine, PoolEngine):
    """The client of a server that takes weights as folders; without updates in flight and interruption."""

    _deliverer: Deliverer

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

    async def update(self, update: Update) -> None:
        """Bring the server to ``update.delivery``. Raises StaleWeights, EngineGone, TimeoutError."""
        assert update.delivery is not None and not update.in_flight
        await self._deliverer.deliver(update.delivery)

    def statistics(self) -> dict[str, float]:
        """The client's counters; of the last update the probe's mean difference, whether it was in place, the seconds
        that the server was paused, the bytes and seconds of its pull; restarts so far."""
        one = self._deliverer
        updates = {"probe_gap": one.gap, "in_place": one.in_place, "server_restarts": one.restarts}
        updates |= {"pause_s": one.pause_s, "pulled_bytes": one.pulled_bytes, "pull_s": one.pull_s}
        return {**super().statistics(), **updates}
