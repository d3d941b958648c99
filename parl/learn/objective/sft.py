"""Supervised objective of the cold start: weighted cross-entropy.

    L(θ) = −(1/N) Σ_tokens w · log π_θ(token | prefix)

N is given by the caller: the sum of the weights of the whole optimiser step, over all micro-batches and ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sft_loss(logprobs: Tensor, weights: Tensor, *, denominator: float) -> Tensor:
    """Weighted negative log-likelihood, a scalar; both tensors have one shape.

    Positions of weight 0 may hold anything and get no gradient. ValueError unless ``denominator`` is positive.
    """
    if denominator <= 0:
        raise ValueError(f"denominator must be positive, not {denominator}")
    weights = weights.to(logprobs.dtype)
    return -(weights * torch.where(weights != 0, logprobs, logprobs.new_zeros(()))).sum() / denominator
