"""What an engine's class must be able to do for the rest of a configuration: its traits are asked, not its name."""

from __future__ import annotations

from typing import Any

from parl.config.plugin_kinds import ENGINES
from rollouts.config import RolloutsConfig


def check_engine_fits(rollouts: RolloutsConfig, *, pictures: bool, staleness: int) -> None:
    """ValueError for what the engine of ``rollouts`` cannot do, with what to change.

    ``pictures``: the policy sees; ``staleness``: episodes run on beside the learner where it is not 0.
    """
    kind: Any = ENGINES.resolve(rollouts.engine)
    named = f"rollouts.engine={rollouts.engine}"
    if pictures and not kind.pictures:
        raise ValueError(
            f"{named} takes no pictures, and the policy sees: rollouts.engine must be embedded, or model.vision null"
        )
    if staleness and not kind.in_flight:
        raise ValueError(f"{named} does not go with trainer.staleness={staleness}: leave one out")
    if rollouts.rebalance and not kind.rebalance:
        raise ValueError(f"rollouts.rebalance=true moves engines between pools, which {named} cannot: set it to false")
    kind.check(rollouts)
    if kind.temperature_one and rollouts.temperature != 1.0:
        raise ValueError(
            f"rollouts.temperature={rollouts.temperature} with {named}: its log-probs are of temperature 1, so train"
            " at 1"
        )
