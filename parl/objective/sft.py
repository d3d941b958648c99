"""Supervised objective of the cold start: weighted cross-entropy.

    L(θ) = −(1/N) Σ_tokens w · log π_θ(token | prefix)

N is given by the caller: the sum of the weights of the whole optimiser step, over all micro-batches and ranks.
Shapes: B rows, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sft_loss(logprobs_BT: Tensor, weights_BT: Tensor, *, denominator: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted negative log-likelihood; positions of weight 0 may hold anything and get no gradient.

    Returns the scalar loss and detached statistics of this batch: ``nll`` (weighted mean, in nats) and ``weight``, by
    which it is to be weighted when batches are averaged.
    """
    if denominator <= 0:
        raise ValueError(f"denominator must be positive, not {denominator}")
    weights_BT = weights_BT.to(logprobs_BT.dtype)
    weighted_BT = weights_BT * torch.where(weights_BT != 0, logprobs_BT, logprobs_BT.new_zeros(()))
    total = -weighted_BT.sum()
    weight = weights_BT.sum()
    mean = total.detach() / weight.clamp(min=torch.finfo(weight.dtype).tiny)
    return total / denominator, {"nll": mean, "weight": weight}
