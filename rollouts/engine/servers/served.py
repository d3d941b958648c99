"""A server behind HTTP as one replica of a pool: the client, and what brings each version of the weights to it."""

from __future__ import annotations

import os

from model.family import Routes
from rollouts.engine.base import Place, PoolEngine, Update
from rollouts.engine.servers.dialects import DIALECTS
from rollouts.engine.servers.http import HttpEngine
from rollouts.engine.servers.weight_update import Deliverer


class ServedEngine(HttpEngine, PoolEngine):
    """The client of a server that takes weights from folders. Neither in flight nor interrupted."""

    _deliverer: Deliverer

    @classmethod
    def of(cls, place: Place, dialect: str) -> ServedEngine:
        """The server at ``place.url``; only the policy's routes are asked for.

        ValueError where its key may not be sent.
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
        """Bring the server to ``update.delivery``. StaleWeights, EngineGone, TimeoutError where it does not."""
        assert update.delivery is not None and not update.in_flight
        await self._deliverer.deliver(update.delivery)

    def statistics(self) -> dict[str, float]:
        """The client's counters; of updates the probe's mean difference, whether they go in place, restarts so far."""
        deliverer = self._deliverer
        updates = {"probe_gap": deliverer.gap, "in_place": deliverer.in_place, "server_restarts": deliverer.restarts}
        return {**super().statistics(), **updates}
