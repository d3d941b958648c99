"""From ``objective`` in the configuration to a loss: the algorithm's own, its correction, its reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from parl.learn.objective.base import Objective
from parl.learn.objective.cispo import cispo_loss
from parl.learn.objective.correction import correction_weights
from parl.learn.objective.grpo import grpo_loss
from parl.learn.objective.gspo import gspo_loss
from parl.learn.objective.k25 import k25_loss
from parl.learn.objective.reference import reference_kl
from parl.learn.rows import Row

# the function, and which keys of its section it takes
LOSSES: dict[str, tuple[Callable[..., tuple[Tensor, dict[str, Tensor]]], tuple[str, ...]]] = {
    "k25": (k25_loss, ("log_ratio_min", "log_ratio_max", "tau")),
    "grpo": (grpo_loss, ("clip_low", "clip_high")),
    "gspo": (gspo_loss, ("clip_low", "clip_high")),
    "cispo": (cispo_loss, ("clip_low", "clip_high")),
}


def policy_loss(
    objective: Objective,
    logprobs: Tensor,
    sampler: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    denominator: float,
    proximal: Tensor | None = None,
    reference: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar loss and means over this batch's trained tokens, named by :func:`statistic_names`, and ``tokens``.

    ``sampler``: log-probs of the engine; ``proximal``: the learner's before the step's first update, for a correction;
    ``reference``: the reference policy's, for the KL. [B, T] of whole traces where ``objective.whole_traces``, else any
    one shape.
    """
    loss_of, keys = LOSSES[objective.name]
    extra: dict[str, Tensor] = {}
    old = sampler
    if objective.corrects:
        settings: Any = objective
        low, high = settings.limits
        old = _needed(proximal, "proximal", f"objective.correction={settings.correction}")
        weights, extra["corrected"] = correction_weights(
            old, sampler, mask, kind=settings.correction, low=low, high=high
        )
        advantages = advantages * weights  # the policy term is linear in A, and weights are never negative
    own = {key: getattr(objective, key) for key in keys}
    loss, stats = loss_of(logprobs, old, advantages, mask, denominator=denominator, **own)
    if objective.kl:
        goal = _needed(reference, "reference", f"objective.kl={objective.kl:g}")
        drift = reference_kl(logprobs, goal, mask, denominator=denominator)
        loss = loss + objective.kl * drift
        extra["reference_kl"] = drift.detach() * denominator / stats["tokens"].clamp(min=1)
    return loss, stats | extra


def statistic_names(objective: Objective) -> tuple[str, ...]:
    """Which means :func:`policy_loss` gives besides ``tokens``."""
    names = ("ratio", "masked", "kl")
    return names + ("corrected",) * objective.corrects + ("reference_kl",) * (objective.kl > 0)


def check_rows(objective: Objective, rows: Iterable[Row]) -> None:
    """ValueError if ``objective`` looks at whole traces and a row is only a part of one."""
    if not objective.whole_traces:
        return
    seen = set()
    for row in rows:
        if not row.whole or row.key in seen:
            raise ValueError(
                f"the trace {row.key} comes in several rows, but objective.name={objective.name} weighs whole traces:"
                " do not split its rows"
            )
        seen.add(row.key)


def _needed(values: Tensor | None, name: str, setting: str) -> Tensor:
    if values is None:
        raise ValueError(f"{setting} needs the rows' {name} log-probs: LearnerGroup.score computes them")
    return values
