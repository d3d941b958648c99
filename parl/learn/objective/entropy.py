"""Statistics of the policy's entropy: its mean, and its expected change by the update.

For a softmax policy dH ≈ −η Cov_{a~π}( log π(a|s), A(s, a) ) (*The entropy mechanism of RL*, arXiv
2505.22617). Since E[log π] = −H in every state, one sampled token estimates the covariance by A (log π + H).
"""

from __future__ import annotations

from torch import Tensor


def entropy_stats(entropy: Tensor, logprobs: Tensor, advantages: Tensor) -> dict[str, Tensor]:
    """Sums over tokens of one shape: ``entropy`` H, and ``entropy_drift`` −A (log π + H); below 0, H falls."""
    drift = -(advantages * (logprobs.detach() + entropy))
    return {"entropy": entropy.sum(), "entropy_drift": drift.sum()}
