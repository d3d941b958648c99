"""The policy objective of Kimi K2.5 (report Eq. 1), negated for minimisation.

    L(θ) = −(1/N) Σ_j Σ_i { Clip(ρ, α, β) · A_j − τ · (log ρ)² },     ρ = π_θ(y_j^i | ·) / π_old(y_j^i | ·)

* Clip masks the gradient by the **log-ratio**: inside [α, β] (both ends included) a token has the normal policy
  gradient ρ · A · ∇log π_θ; outside it is the constant A · e^α or A · e^β and has none, whatever the sign of the
  advantage. PPO's clip depends on the sign; this one bounds drift from stale data and from a mismatch of engine and
  learner in both directions. The report prints Clip on the ratio with α > 0; its text clips the log-ratio, so
  α < 0 < β here.
* The τ term stands outside Clip in Eq. 1 and so applies to **every** trained token: a token outside [α, β] gets no
  policy gradient but is still drawn back to the policy that sampled it.
* N, the number of trained tokens over all micro-batches and ranks, is given by the caller.

Shapes: B rows, T tokens. All log-probabilities are natural logarithms.
"""

from __future__ import annotations

import torch
from torch import Tensor

_STATS_MAX = 20.0


def k25_loss(
    logprobs_new_BT: Tensor,
    logprobs_old_BT: Tensor,
    advantages_BT: Tensor,
    mask_BT: Tensor,
    *,
    denominator: float,
    log_ratio_min: float,
    log_ratio_max: float,
    tau: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 1 over the tokens where ``mask_BT`` is True; other positions may hold anything and get no gradient.

    Returns the scalar loss and detached statistics of this batch's trained tokens: ``ratio`` (mean of ρ),
    ``masked`` (share outside [α, β]), ``kl`` (k3 estimate of KL(π_old ‖ π_θ): mean of ρ − 1 − log ρ, in nats) and
    ``tokens``, by which the others are to be weighted when batches are averaged. Statistics cut |log ρ| at 20, so that
    one runaway token leaves them finite.
    """
    if not log_ratio_min < 0 < log_ratio_max:
        raise ValueError(f"needs log_ratio_min < 0 < log_ratio_max, not [{log_ratio_min}, {log_ratio_max}]")
    if denominator <= 0:
        raise ValueError(f"denominator must be positive, not {denominator}")
    mask_BT = mask_BT.bool()
    zero = logprobs_new_BT.new_zeros(())
    log_ratio_BT = torch.where(mask_BT, logprobs_new_BT - logprobs_old_BT, zero)
    advantages_BT = torch.where(mask_BT, advantages_BT.to(logprobs_new_BT.dtype), zero)
    # exp(clamp) is Clip: the boundary's value and a zero gradient outside, and it cannot overflow
    clipped_BT = log_ratio_BT.clamp(log_ratio_min, log_ratio_max).exp()
    loss = -(clipped_BT * advantages_BT - tau * log_ratio_BT.square()).sum() / denominator
    return loss, _stats(log_ratio_BT.detach(), mask_BT, log_ratio_min, log_ratio_max)


def _stats(log_ratio_BT: Tensor, mask_BT: Tensor, low: float, high: float) -> dict[str, Tensor]:
    tokens = mask_BT.sum()
    n = tokens.clamp(min=1)
    outside_BT = (log_ratio_BT < low) | (log_ratio_BT > high)  # never where mask is False: the log-ratio is 0 there
    log_ratio_BT = log_ratio_BT.clamp(-_STATS_MAX, _STATS_MAX)
    kl_BT = torch.expm1(log_ratio_BT) - log_ratio_BT
    return {
        "ratio": (log_ratio_BT.exp() * mask_BT).sum() / n,
        "masked": outside_BT.sum() / n,
        "kl": kl_BT.sum() / n,
        "tokens": tokens,
    }
