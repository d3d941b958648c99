"""Traits of the embedded engine, for the configuration, which does not load it. No torch."""

from __future__ import annotations

from rollouts.engine.base import EmbeddedConfig, PoolEngine


class EmbeddedTraits(PoolEngine):
    """Supports pictures, updates in flight, rebalancing, and adapters."""

    Config = EmbeddedConfig
    pictures = in_flight = rebalance = adapters = True
