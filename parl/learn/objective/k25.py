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

from torch import Tensor

from parl.learn.objective.common import statistics, trained_only


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
    log_ratio_BT, advantages_BT, mask_BT = trained_only(
        logprobs_new_BT, logprobs_old_BT, advantages_BT, mask_BT, denominator
    )
    # exp(clamp) is Clip: the boundary's value and a zero gradient outside, and it cannot overflow
    clipped_BT = log_ratio_BT.clamp(log_ratio_min, log_ratio_max).exp()
    loss = -(clipped_BT * advantages_BT - tau * log_ratio_BT.square()).sum() / denominator
    outside_BT = (log_ratio_BT < log_ratio_min) | (log_ratio_BT > log_ratio_max)  # not where untrained: log ρ is 0
    return loss, statistics(log_ratio_BT, mask_BT, outside_BT)
