"""GRPO (arXiv 2402.03300, Eq. 3) with DAPO's two clips and token mean (arXiv 2503.14476, Eq. 8), negated.

    L(θ) = −(1/N) Σ_j Σ_i min( ρ A_j, clip(ρ, 1 − ε_low, 1 + ε_high) A_j ),     ρ = π_θ(y_j^i | ·) / π_old(y_j^i | ·)

A token of a good episode stops gaining once ρ > 1 + ε_high, one of a bad episode once ρ < 1 − ε_low; if ρ
moved the wrong way it keeps its gradient. N, the trained tokens of the whole step, is given by the caller, so
every token weighs the same; GRPO's paper averages over each answer first, then over answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from parl.learn.objective.base import Stats
from parl.learn.objective.correction import Corrected

if TYPE_CHECKING:
    from torch import Tensor


class Grpo(Corrected):
    """Group relative policy optimisation, with DAPO's two clips. PPO's clipped ratio, token by token."""

    name: str = Field(default="grpo", description="the algorithm")
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="ε: a ratio below 1 - ε gains nothing by falling")
    clip_high: float = Field(default=0.2, gt=0, description="ε of the other side; DAPO's clip-higher is 0.28")

    def loss(
        self, logprobs_new: Tensor, logprobs_old: Tensor, advantages: Tensor, mask: Tensor, *, denominator: float
    ) -> tuple[Tensor, Stats]:
        """See ``Objective``; ``masked``: the share of tokens without a gradient."""
        from parl.learn.objective.common import clipped_surrogate, statistics, trained_only

        log_ratio, advantages, mask = trained_only(logprobs_new, logprobs_old, advantages, mask, denominator)
        surrogate, clipped = clipped_surrogate(log_ratio, advantages, self.clip_low, self.clip_high)
        return -surrogate.sum() / denominator, statistics(log_ratio, mask, clipped)
