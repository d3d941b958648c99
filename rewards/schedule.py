"""The schedule of λ1 and λ2. Its only state is the training step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearAnneal:
    """λ(step) = start · max(0, 1 − step / horizon), horizon = min(anneal_fraction · total, total − 1).

    ``step`` counts from 0 to ``total_steps`` - 1. The K2.5 report anneals to 0 without a schedule. The second
    bound makes the last step a λ = 0 step even with ``anneal_fraction`` 1, against spawn farming.
    """

    start: float
    anneal_fraction: float
    total_steps: int

    def __post_init__(self) -> None:
        if self.start < 0 or not 0 < self.anneal_fraction <= 1 or self.total_steps < 1:
            raise ValueError(f"{self}: needs start >= 0, 0 < anneal_fraction <= 1, total_steps >= 1")

    @property
    def horizon(self) -> float:
        """The step (may be fractional) from which λ is 0."""
        return min(self.anneal_fraction * self.total_steps, self.total_steps - 1)

    def __call__(self, step: int) -> float:
        """λ at ``step``."""
        if step >= self.horizon:
            return 0.0
        return self.start * (1 - max(step, 0) / self.horizon)
