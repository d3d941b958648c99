"""What the embedded engine can do, for the configuration, which does not load it. No torch."""

from __future__ import annotations

from rollouts.engine.base import PoolEngine


class EmbeddedTraits(PoolEngine):
    """It takes pictures, new weights while it writes, another pool's place, and adapters."""

    pictures = in_flight = rebalance = adapters = True
