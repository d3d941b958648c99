"""The policy objective of Kimi K2.5 (report Eq. 1), negated for minimisation.

    L(θ) = −(1/N) Σ_j Σ_i { Clip(ρ, α, β) · A_j − τ · (log ρ)² },     ρ = π_θ(y_j^i | ·) / π_old(y_j^i | ·)

- Clip masks the gradient by the **log-ratio**: inside [α, β] (both ends included) a token has the normal
  policy gradient ρ · A · ∇log π_θ; outside the term is the constant A · e^α or A · e^β without gradient,
  whatever the sign of the advantage. Unlike PPO's clip it bounds drift and engine mismatch in both
  directions. The report prints Clip on the ratio with α > 0; its text clips the log-ratio, so α < 0 < β here.
- The τ term is outside Clip in Eq. 1 and applies to **every** trained token: a token outside [α, β] gets no
  policy gradient but is drawn back to the policy that sampled it.
- N, the number of trained tokens over all micro-batches and ranks, is given by the caller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from parl.learn.objective.base import Objective, Stats

if TYPE_CHECKING:
    from torch import Tensor


class K25(Objective):
    """K2.5's policy objective (report Eq. 1)."""

    name: str = Field(default="k25", description="the algorithm")
    log_ratio_min: float = Field(default=-0.5, lt=0, description="α: tokens with a smaller log-ratio get no gradient")
    log_ratio_max: float = Field(default=0.5, gt=0, description="β: tokens with a larger log-ratio get no gradient")
    tau: float = Field(default=0.01, ge=0, description="weight of the squared log-ratio")

    def loss(
        self, logprobs_new: Tensor, logprobs_old: Tensor, advantages: Tensor, mask: Tensor, *, denominator: float
    ) -> tuple[Tensor, Stats]:
        """Eq. 1 over the tokens where ``mask`` is True; see ``Objective``.

        The means: ``ratio`` (of ρ), ``masked`` (share outside [α, β]), ``kl`` (k3 estimate of KL(π_old ‖
        π_θ): mean of ρ − 1 − log ρ, in nats). They clamp |log ρ| at 20 to stay finite.
        """
        from parl.learn.objective.common import statistics, trained_only

        log_ratio, advantages, mask = trained_only(logprobs_new, logprobs_old, advantages, mask, denominator)
        # exp(clamp) is Clip: the boundary's value and a zero gradient outside, and it cannot overflow
        clipped = log_ratio.clamp(self.log_ratio_min, self.log_ratio_max).exp()
        loss = -(clipped * advantages - self.tau * log_ratio.square()).sum() / denominator
        # not where untrained: log ρ is 0
        outside = (log_ratio < self.log_ratio_min) | (log_ratio > self.log_ratio_max)
        return loss, statistics(log_ratio, mask, outside)
