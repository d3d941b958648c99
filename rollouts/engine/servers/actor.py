"""A server behind HTTP as a Ray actor: one replica of a pool, with the interface of the embedded engine's actor."""

from __future__ import annotations

import os
from typing import Any

from model.kimi.config import ModelConfig
from rollouts.config import RolloutsConfig
from rollouts.engine.embedded.actor import EngineActor
from rollouts.engine.servers.dialects import DIALECTS
from rollouts.engine.servers.handover import Deliverer, Delivery
from rollouts.engine.servers.http import HttpEngine


class ServedActor(EngineActor):
    """The server at ``url`` as a replica of ``pool``. ``update`` takes a Delivery in place of weights."""

    def __init__(self, model: ModelConfig, rollouts: RolloutsConfig, *, pool: str, url: str) -> None:
        self._begin(connect(model, rollouts, pool=pool, url=url))
        self._deliverer = Deliverer(self._engine, rollouts.http)

    async def update(self, version: int, weights: Any, base: None = None, in_flight: bool = False) -> int:
        """Bring the server to ``weights``, a Delivery, never in flight; returns the version now served."""
        assert not in_flight
        assert isinstance(weights, Delivery)
        await self._deliverer.deliver(weights)
        return self._engine.policy_version

    async def statistics(self) -> dict[str, float]:
        """The client's counters; of updates the probe's mean difference, whether they go in place, restarts so far."""
        deliverer = self._deliverer
        updates = {"probe_gap": deliverer.gap, "in_place": deliverer.in_place, "server_restarts": deliverer.restarts}
        return {**self._engine.statistics(), **updates}


def connect(model: ModelConfig, rollouts: RolloutsConfig, *, pool: str, url: str) -> HttpEngine:
    """The engine at ``url``; only the policy's routes are asked for. ValueError where its key may not be sent."""
    http = rollouts.http
    routed = pool == "policy" and model.num_moe_layers > 0
    return HttpEngine(
        url,
        DIALECTS[rollouts.engine],
        pool=pool,
        longest=model.max_position_embeddings,
        layers=model.num_moe_layers if routed else 0,
        experts=model.num_experts_per_tok if routed else 0,
        dense=model.first_k_dense_replace,
        live_routes=http.without_routes == "live",
        vocabulary=model.vocab_size,
        routed=model.n_routed_experts,
        api_key=os.environ.get(http.api_key_env or ""),
        key_name=http.api_key_env or "",
    )
