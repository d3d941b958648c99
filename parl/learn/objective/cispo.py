"""CISPO (MiniMax-M1, arXiv 2506.13585, Eqs. 4 and 5), negated for minimisation.

    L(θ) = −(1/N) Σ_j Σ_i sg( clip(ρ, 1 − ε_low, 1 + ε_high) ) A_j log π_θ(y_j^i | ·)

sg stops the gradient: the importance weight is limited, but no token loses its gradient. With ε_low = 1 there
is no lower limit, as in the paper; then this is truncated REINFORCE. N: trained tokens of the whole step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from parl.learn.objective.base import Stats
from parl.learn.objective.correction import Corrected

if TYPE_CHECKING:
    from torch import Tensor


class Cispo(Corrected):
    """Clipped importance-sampling weights. REINFORCE with a limited weight instead of a limited gradient."""

    name: str = Field(default="cispo", description="the algorithm")
    clip_low: float = Field(default=1.0, ge=0, le=1, description="weights are at least 1 - ε; 1 = no lower limit")
    clip_high: float = Field(default=4.0, gt=0, description="weights are at most 1 + ε")

    def loss(
        self, logprobs_new: Tensor, logprobs_old: Tensor, advantages: Tensor, mask: Tensor, *, denominator: float
    ) -> tuple[Tensor, Stats]:
        """See ``Objective``; ``masked``: the share of tokens with a limited weight."""
        import torch

        from parl.learn.objective.common import LOG_MAX, statistics, trained_only

        log_ratio, advantages, mask = trained_only(logprobs_new, logprobs_old, advantages, mask, denominator)
        ratio = log_ratio.detach().clamp(-LOG_MAX, LOG_MAX).exp()
        weight = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        score = torch.where(mask, logprobs_new, logprobs_new.new_zeros(()))
        return -(weight * advantages * score).sum() / denominator, statistics(log_ratio, mask, weight != ratio)
