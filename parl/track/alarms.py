"""Warnings about a training step from its metrics, with the limits of docs/metrics.md.

Shown with a run's progress, in its log and by ``parl top``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNREAD, CUT = 0.1, 0.1  # shares of turns
GAPS = {"float32": 1e-3, "bfloat16": 1.0}  # nats, the largest of a step: transformers' two attentions differ by 0.3


def alarms(row: Mapping[str, Any], step: int, dtype: str = "float32") -> list[str]:
    """Warnings about a step's metrics, most serious first. A metric of None is missing.

    ``dtype``: of the policy's weights.
    """
    out = []

    def value(name: str) -> float:
        found = row.get(name)
        return float(found) if isinstance(found, int | float) else 0.0

    if any(row.get(name, 0.0) is None for name in ("policy/loss", "policy/grad_norm")):
        out.append("a loss or a gradient norm is not a number")
    if value("turns/unread") > UNREAD:
        out.append(
            f"{value('turns/unread'):.0%} of the turns cannot be read: the format is being lost, or the parser is not"
            " the model's (model.chat); parl episodes ls RUN --status malformed"
        )
    if value("turns/cut") > CUT:
        out.append(f"{value('turns/cut'):.0%} of the turns are cut by length: raise rollouts.budget.turn_tokens")
    if row.get("turns/calls") == 0:
        out.append("no agent called a tool: nothing is searched, and no sub-agent can be created")
    if failed := value("episodes/failed"):
        out.append(f"{failed:.0f} episodes failed in step {step}: parl episodes ls RUN --status failed says why")
    if (gap := value("policy/engine_gap")) > GAPS[dtype]:
        out.append(f"engine and learner differ by {gap:.1e} nats: they no longer compute the same policy")
    told = value("turns/unread") > UNREAD or value("turns/cut") > CUT
    malformed, answered = value("episodes/malformed"), value("episodes/answered")
    if malformed > 0.2 * (malformed + answered) and not told:
        out.append(
            f"{malformed:.0f} malformed episodes: the format is being lost, or rollouts.budget.turn_tokens is small"
        )
    if value("swarm/useless_spawn_rate") > 0.5 and not value("lambda/parallel"):
        out.append("more than half of the tasks that no swarm finds faster are given to one, and λ1 is 0")
    if row.get("swarm/spawn_rate") == 0.0 and value("lambda/parallel"):
        out.append("nothing is spawned although λ1 still pays for it: serial collapse")
    return out
