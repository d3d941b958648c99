"""Weights for what the engine samples and the learner would not: w = π_old(learner) / π_old(engine), same weights.

The two compute one policy in different kernels, precisions and, without replay, routes. w multiplies a token's policy
term; the objective's own ratio is then learner against learner (π_θ / π_old), and limits the step alone.

* ``tis``, truncated: min(w, C), token by token (Yao et al. 2025, *Your efficient RL framework secretly brings you
  off-policy RL training*).
* ``mis``, masked by trace: W · [W <= C] with W = Π w over the trace, one weight for all its tokens (Liu et al. 2025,
  *When speed kills stability*). Rows must be whole traces.
* ``icepop``, masked by token: w · [α <= w <= β] (arXiv 2510.18855).

Masked tokens still count in the loss's denominator, as in IcePop's equation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from parl.learn.objective.common import LOG_MAX


def correction_weights(
    proximal: Tensor, sampler: Tensor, mask: Tensor, *, kind: str, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Detached weights of the tokens (the last dimension holds one trace's), and the share that a limit changed.

    Weights of tokens where ``mask`` is False mean nothing. ValueError for an unknown ``kind``.
    """
    mask = mask.bool()
    log_weight = torch.where(mask, proximal - sampler, proximal.new_zeros(())).detach()
    if kind == "mis":
        log_weight = log_weight.sum(-1, keepdim=True).expand_as(log_weight)
    weight = log_weight.clamp(-LOG_MAX, LOG_MAX).exp()
    inside = (weight >= low) & (weight <= high)
    if kind == "tis":
        limited = weight.clamp(low, high)
    elif kind in ("mis", "icepop"):
        limited = torch.where(inside, weight, weight.new_zeros(()))
    else:
        raise ValueError(f"no correction {kind!r}: tis, mis, icepop")
    return limited, (~inside & mask).sum() / mask.sum().clamp(min=1)
