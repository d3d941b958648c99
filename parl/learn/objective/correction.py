"""Correction of the mismatch of engine and learner: w = π_old(learner) / π_old(engine).

The two compute the same weights with different kernels, precisions and, without replay, routes. w multiplies
a token's policy term; the objective's own ratio is then learner against learner (π_θ / π_old).

- ``tis``, truncated: min(w, C), token by token (Yao et al. 2025, *Your efficient RL framework secretly brings
  you off-policy RL training*).
- ``mis``, masked by trace: W · [W <= C] with W = Π w over the trace, one weight for all its tokens (Liu et
  al. 2025, *When speed kills stability*). Rows must be whole traces.
- ``icepop``, masked by token: w · [α <= w <= β] (arXiv 2510.18855).

Masked tokens still count in the loss's denominator, as in IcePop's equation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from parl.learn.objective.base import Normalised

if TYPE_CHECKING:
    from torch import Tensor

_PUBLISHED = {"tis": (0.0, 2.0), "mis": (0.0, 2.0), "icepop": (0.5, 5.0)}


class Corrected(Normalised):
    """An objective with a correction of learner against engine. Imports torch lazily."""

    correction: Literal["none", "tis", "mis", "icepop"] = Field(
        default="none", description="weight of learner against engine: truncated, masked by trace, masked by token"
    )
    correction_limits: tuple[float, float] | None = Field(
        default=None,
        description="smallest and largest such weight; null = as published: tis and mis [0, 2], icepop [0.5, 5]",
    )

    @model_validator(mode="after")
    def _check(self):
        if self.correction_limits is None:
            return self
        low, high = self.correction_limits
        shown = f"correction_limits=[{low:g}, {high:g}]"
        if self.correction == "none":
            raise ValueError(f"{shown} does nothing with correction=none: choose tis, mis or icepop, or remove it")
        if not 0 <= low <= 1 <= high:
            raise ValueError(f"{shown} must hold the weight 1 of an exact engine: 0 <= smallest <= 1 <= largest")
        if self.correction != "icepop" and low > 0:
            raise ValueError(f"{shown}: correction={self.correction} has no smallest weight; write 0, or use icepop")
        return self

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest weight of the chosen correction."""
        return self.correction_limits or _PUBLISHED[self.correction]

    @property
    def corrects(self) -> bool:
        """See ``Objective``."""
        return self.correction != "none"

    @property
    def whole_traces(self) -> bool:
        """``mis`` has one weight for all tokens of a trace."""
        return self.correction == "mis"

    def weights(self, proximal: Tensor, sampler: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """:func:`correction_weights` with the section's kind and limits."""
        low, high = self.limits
        return correction_weights(proximal, sampler, mask, kind=self.correction, low=low, high=high)


def correction_weights(
    proximal: Tensor, sampler: Tensor, mask: Tensor, *, kind: str, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Detached weights of the tokens (the last dimension is one trace), and the share that a limit changed.

    Weights where ``mask`` is False are meaningless. ValueError for an unknown ``kind``.
    """
    import torch

    from parl.learn.objective.common import LOG_MAX

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
