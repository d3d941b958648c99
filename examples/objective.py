"""Your own policy objective. With this file's folder on PYTHONPATH:

objective: {name: "objective:Tapered", cap: 1.0, kl: 0.05}

Tapered off-policy REINFORCE (TOPR, arXiv 2503.14286), negated for minimisation:

    L(θ) = −(1/N) Σ sg(w) A log π_θ,     w = 1 where A > 0, else min(ρ, cap),     ρ = π_θ / π_old

Good episodes are imitated however far the policy has moved; bad ones lose their weight once they are
unlikely.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from parl.learn.objective.base import Objective, Stats

if TYPE_CHECKING:
    from torch import Tensor


class Tapered(Objective):
    """The section (``kl``, ``ptx`` and ``credit`` are common to all), the loss, and its statistics."""

    cap: float = Field(default=1.0, gt=0, description="largest weight of a token of a bad episode")

    @property
    def statistics(self) -> tuple[str, ...]:
        """Tracked as ``policy/NAME``."""
        return ("ratio", "masked", "kl", "tapered")

    def loss(
        self, logprobs_new: Tensor, logprobs_old: Tensor, advantages: Tensor, mask: Tensor, *, denominator: float
    ) -> tuple[Tensor, Stats]:
        """See ``Objective``: values outside ``mask`` may be anything, so they are cleared first."""
        import torch  # here, so that a configuration is read without it

        from parl.learn.objective.common import statistics, trained_only

        log_ratio, advantages, mask = trained_only(logprobs_new, logprobs_old, advantages, mask, denominator)
        ratio = log_ratio.detach().exp()
        bad = mask & (advantages < 0)
        weight = torch.where(bad, ratio.clamp(max=self.cap), torch.ones_like(ratio))
        score = torch.where(mask, logprobs_new, logprobs_new.new_zeros(()))
        stats = statistics(log_ratio, mask, bad & (ratio > self.cap))
        stats["tapered"] = (bad & (ratio < 1)).sum() / stats["tokens"].clamp(min=1)
        return -(weight * advantages * score).sum() / denominator, stats
