"""GRPO (arXiv 2402.03300, Eq. 3), with DAPO's decoupled clip and token mean (arXiv 2503.14476, Eq. 8), negated.

    L(θ) = −(1/N) Σ_j Σ_i min( ρ A_j, clip(ρ, 1 − ε_low, 1 + ε_high) A_j ),     ρ = π_θ(y_j^i | ·) / π_old(y_j^i | ·)

A token of a good episode stops gaining once ρ > 1 + ε_high, one of a bad episode once ρ < 1 − ε_low; where ρ has gone
the wrong way it keeps its gradient. N counts trained tokens of the whole step and is given by the caller, so every
token weighs the same; GRPO's paper means over each answer first and over the answers then.
"""

from __future__ import annotations

from torch import Tensor

from parl.learn.objective.common import clipped_surrogate, statistics, trained_only


def grpo_loss(
    logprobs_new: Tensor,
    logprobs_old: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    denominator: float,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss over the tokens where ``mask`` is True, and statistics; ``masked``: without a gradient."""
    log_ratio, advantages, mask = trained_only(logprobs_new, logprobs_old, advantages, mask, denominator)
    surrogate, clipped = clipped_surrogate(log_ratio, advantages, clip_low, clip_high)
    return -surrogate.sum() / denominator, statistics(log_ratio, mask, clipped)
