"""Checks that an engine's traits support the rest of the configuration."""

from __future__ import annotations

from typing import Any

from model.family import Shape, family_of
from parl.config.plugin_kinds import ENGINES
from rollouts.config import RolloutsConfig
from rollouts.engine.built_in import int8_of


def check_engine_fits(rollouts: RolloutsConfig, *, model: Shape, staleness: int) -> None:
    """ValueError for settings that the engine of ``rollouts`` does not support, with the fix.

    ``model``: the policy's; ``staleness``: episodes run beside the learner unless 0.
    """
    kind: Any = ENGINES.resolve(rollouts.engine)
    named = f"rollouts.engine={rollouts.engine}"
    if model.pictures is not None and not kind.pictures:
        raise ValueError(
            f"{named} takes no pictures, and the policy sees: rollouts.engine must be embedded, or model.vision null"
        )
    if staleness and not kind.in_flight:
        raise ValueError(f"{named} conflicts with trainer.staleness={staleness}: leave one out")
    if rollouts.rebalance and not kind.rebalance:
        raise ValueError(f"rollouts.rebalance=true moves engines between pools, which {named} cannot: set it to false")
    kind.check(rollouts)
    if (int8 := int8_of(rollouts)) != "none":
        try:
            family_of(model).check_int8(model)
        except ValueError as error:
            raise ValueError(f"rollouts.engine_config.int8={int8}: {error}") from None
    if kind.temperature_one and rollouts.temperature != 1.0:
        raise ValueError(
            f"rollouts.temperature={rollouts.temperature} with {named}: its log-probs are of temperature 1, so train"
            " at 1"
        )
