"""Checks that an engine's traits support the rest of the configuration."""

from __future__ import annotations

from typing import Any

from parl.config.plugin_kinds import ENGINES
from rollouts.config import RolloutsConfig


def check_engine_fits(rollouts: RolloutsConfig, *, pictures: bool, staleness: int) -> None:
    """ValueError for settings that the engine of ``rollouts`` does not support, with the fix.

    ``pictures``: the policy has vision; ``staleness``: episodes run beside the learner unless 0.
    """
    kind: Any = ENGINES.resolve(rollouts.engine)
    named = f"rollouts.engine={rollouts.engine}"
    if pictures and not kind.pictures:
        raise ValueError(
            f"{named} takes no pictures, and the policy sees: rollouts.engine must be embedded, or model.vision null"
        )
    if staleness and not kind.in_flight:
        raise ValueError(f"{named} conflicts with trainer.staleness={staleness}: leave one out")
    if rollouts.rebalance and not kind.rebalance:
        raise ValueError(f"rollouts.rebalance=true moves engines between pools, which {named} cannot: set it to false")
    kind.check(rollouts)
    if kind.temperature_one and rollouts.temperature != 1.0:
        raise ValueError(
            f"rollouts.temperature={rollouts.temperature} with {named}: its log-probs are of temperature 1, so train"
            " at 1"
        )
