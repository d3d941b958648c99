"""KL divergence from a reference policy, as estimated in GRPO (arXiv 2402.03300, Eq. 4: the k3 estimator).

    (β/N) Σ { π_ref/π_θ − 1 − log(π_ref/π_θ) }

Never negative. Unbiased for KL(π_θ ‖ π_ref) on tokens of π_θ itself, without a correction for older tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parl.learn.objective.common import LOG_MAX


def reference_kl(logprobs_new: Tensor, logprobs_reference: Tensor, mask: Tensor, *, denominator: float) -> Tensor:
    """Σ over trained tokens, divided by ``denominator``: a scalar. Constant where π_ref/π_θ > e^20."""
    if denominator <= 0:
        raise ValueError(f"denominator must be positive, not {denominator}")
    gap = torch.where(mask.bool(), logprobs_reference - logprobs_new, logprobs_new.new_zeros(()))
    gap = gap.clamp(max=LOG_MAX)
    return (torch.expm1(gap) - gap).sum() / denominator
