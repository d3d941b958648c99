"""GSPO (arXiv 2507.18071, Eqs. 5 and 7), negated for minimisation.

    L(θ) = −(1/N) Σ_j |y_j| min( s_j A_j, clip(s_j, 1 − ε_low, 1 + ε_high) A_j )
    s_j = ( π_θ(y_j) / π_old(y_j) )^(1/|y_j|) = exp( (1/|y_j|) Σ_i log ρ_j^i )

All tokens of a trace share one ratio, so a trace is clipped as a whole, and its gradient needs the whole: a trace that
is cut in several rows would have several ratios. N counts trained tokens, so a trace weighs as many times as it has
tokens; the paper's mean over traces is the same where they are equally long.
"""

from __future__ import annotations

from torch import Tensor

from parl.learn.objective.common import clipped_surrogate, statistics, trained_only


def gspo_loss(
    logprobs_new_BT: Tensor,
    logprobs_old_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    denominator: float,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss of B whole traces, and statistics; ``masked``: tokens of traces without a gradient."""
    log_ratio_BT, advantages_BT, mask_BT = trained_only(
        logprobs_new_BT, logprobs_old_BT, advantages_BT, mask_BT, denominator
    )
    tokens_B1 = mask_BT.sum(-1, keepdim=True).clamp(min=1)
    mean_BT = (log_ratio_BT.sum(-1, keepdim=True) / tokens_B1).expand_as(log_ratio_BT)
    surrogate_BT, clipped_BT = clipped_surrogate(mean_BT, advantages_BT, clip_low, clip_high)  # 0 where untrained: A is
    return -surrogate_BT.sum() / denominator, statistics(log_ratio_BT, mask_BT, clipped_BT)
