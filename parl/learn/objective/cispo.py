"""CISPO (MiniMax-M1, arXiv 2506.13585, Eqs. 4 and 5), negated for minimisation.

    L(θ) = −(1/N) Σ_j Σ_i sg( clip(ρ, 1 − ε_low, 1 + ε_high) ) A_j log π_θ(y_j^i | ·)

sg stops the gradient: the importance weight is limited, but no token ever loses its gradient. With ε_low = 1 there is
no lower limit, as in the paper; then this is truncated REINFORCE. N as everywhere: trained tokens of the whole step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parl.learn.objective.common import LOG_MAX, statistics, trained_only


def cispo_loss(
    logprobs_new: Tensor,
    logprobs_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    denominator: float,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss over the tokens where ``mask`` is True, and statistics; ``masked``: with a limited weight."""
    log_ratio, advantages, mask = trained_only(logprobs_new, logprobs_old, advantages, mask, denominator)
    ratio = log_ratio.detach().clamp(-LOG_MAX, LOG_MAX).exp()
    weight = ratio.clamp(1 - clip_low, 1 + clip_high)
    score = torch.where(mask, logprobs_new, logprobs_new.new_zeros(()))
    return -(weight * advantages * score).sum() / denominator, statistics(log_ratio, mask, weight != ratio)
