"""GSPO (arXiv 2507.18071, Eqs. 5 and 7), negated for minimisation.

    L(θ) = −(1/N) Σ_j |y_j| min( s_j A_j, clip(s_j, 1 − ε_low, 1 + ε_high) A_j )
    s_j = ( π_θ(y_j) / π_old(y_j) )^(1/|y_j|) = exp( (1/|y_j|) Σ_i log ρ_j^i )

All tokens of a trace share one ratio, so a trace is clipped as a whole, and rows must be whole traces. N
counts trained tokens, so a trace weighs as many times as it has tokens; the paper's mean over traces is the
same for traces of equal length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from parl.learn.objective.base import Normalised, Stats

if TYPE_CHECKING:
    from torch import Tensor


class Gspo(Normalised):
    """Group sequence policy optimisation. One ratio per trace, the geometric mean of its tokens'."""

    name: str = Field(default="gspo", description="the algorithm")
    clip_low: float = Field(default=3e-4, gt=0, lt=1, description="ε: a ratio below 1 - ε gains nothing by falling")
    clip_high: float = Field(default=4e-4, gt=0, description="ε of the other side")

    @property
    def whole_traces(self) -> bool:
        """Always: a part of a trace would have another ratio."""
        return True

    def loss(
        self, logprobs_new: Tensor, logprobs_old: Tensor, advantages: Tensor, mask: Tensor, *, denominator: float
    ) -> tuple[Tensor, Stats]:
        """See ``Objective``, for B whole traces; ``masked``: the share of tokens of traces without a gradient."""
        from parl.learn.objective.common import clipped_surrogate, statistics, trained_only

        log_ratio_BT, advantages_BT, mask_BT = trained_only(logprobs_new, logprobs_old, advantages, mask, denominator)
        tokens_B1 = mask_BT.sum(-1, keepdim=True).clamp(min=1)
        mean_BT = (log_ratio_BT.sum(-1, keepdim=True) / tokens_B1).expand_as(log_ratio_BT)
        # 0 where untrained, as A is
        surrogate_BT, clipped_BT = clipped_surrogate(mean_BT, advantages_BT, self.clip_low, self.clip_high)
        return -surrogate_BT.sum() / denominator, statistics(log_ratio_BT, mask_BT, clipped_BT)
