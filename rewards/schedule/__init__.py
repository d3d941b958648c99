"""How λ1 and λ2 fall, by name: one small module each.

A schedule gives the share, in [0, 1], of λ at its start. From ``anneal`` · steps on, and in the last step, λ is 0
whatever the schedule says; ``constant``, which is for ablations, has no such end.
"""

from __future__ import annotations

from collections.abc import Callable

from rewards.schedule import constant, cosine, linear

Share = Callable[[int, float], float]  # of (step from 0, the step ``end`` from which on λ is 0), before ``end``
SCHEDULES: dict[str, Share] = {"linear": linear.share, "cosine": cosine.share, "constant": constant.share}


def annealed(start: float, fraction: float, step: int, steps: int, name: str = "linear") -> float:
    """λ at ``step`` of ``steps`` under the schedule ``name``; ``step`` counts from 0.

    The K2.5 report anneals to 0 without a schedule. λ is 0 from min(fraction · steps, steps − 1) on: the last step is
    a λ = 0 step even with ``fraction`` 1, against spawn farming.
    """
    end = min(fraction * steps, steps - 1)
    if name == "constant":
        return start
    return start * SCHEDULES[name](step, end) if step < end else 0.0
