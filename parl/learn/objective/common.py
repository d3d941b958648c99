"""Shared by the policy objectives: masked inputs, PPO's clipped surrogate, statistics of a batch.

Shapes are free, except that the last dimension is one trace for whole-trace objectives.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG_MAX = 20.0  # |log ρ| is clamped here before exp, to keep everything finite


def trained_only(
    logprobs_new: Tensor, logprobs_old: Tensor, advantages: Tensor, mask: Tensor, denominator: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(log ρ, advantages, mask) with zeros where ``mask`` is False; ValueError unless N > 0."""
    if denominator <= 0:
        raise ValueError(f"denominator must be positive, not {denominator}")
    mask = mask.bool()
    zero = logprobs_new.new_zeros(())
    log_ratio = torch.where(mask, logprobs_new - logprobs_old, zero)
    return log_ratio, torch.where(mask, advantages.to(logprobs_new.dtype), zero), mask


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """min(ρ A, clip(ρ, 1 − low, 1 + high) A), and where it has no gradient: PPO's clip, by the sign of A."""
    ratio = log_ratio.clamp(-LOG_MAX, LOG_MAX).exp()
    clipped = ((advantages > 0) & (ratio > 1 + high)) | ((advantages < 0) & (ratio < 1 - low))
    return torch.where(clipped, ratio.detach().clamp(1 - low, 1 + high), ratio) * advantages, clipped


def statistics(log_ratio: Tensor, mask: Tensor, masked: Tensor) -> dict[str, Tensor]:
    """Means over trained tokens: ``ratio``, ``masked``, ``kl`` (k3: ρ − 1 − log ρ, nats), and ``tokens``.

    ``log_ratio`` must be 0 and ``masked`` False where ``mask`` is False; ``tokens`` weighs averages over
    batches.
    """
    tokens = mask.sum()
    n = tokens.clamp(min=1)
    return {
        "ratio": (log_ratio.detach().clamp(-LOG_MAX, LOG_MAX).exp() * mask).sum() / n,
        "masked": masked.sum() / n,
        "kl": k3(log_ratio.detach()).sum() / n,
        "tokens": tokens,
    }


def k3(log_ratio: Tensor) -> Tensor:
    """ρ − 1 − log ρ of each token, in nats: its mean over samples of π_old estimates KL(π_old ‖ π_new)."""
    log_ratio = log_ratio.clamp(-LOG_MAX, LOG_MAX)
    return torch.expm1(log_ratio) - log_ratio
