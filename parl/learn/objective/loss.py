"""The policy loss around an objective: correction weights and a reference policy."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from parl.learn.objective.base import Objective
from parl.learn.objective.reference import reference_kl
from parl.learn.rows import Row


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
    """The scalar loss and means over the trained tokens, named by :func:`statistic_names`, and ``tokens``.

    ``sampler``: log-probs of the engine; ``proximal``: the learner's before the step's first update, for a
    correction; ``reference``: the reference policy's, for the KL. [B, T] of whole traces if
    ``objective.whole_traces``, else any one shape.
    """
    extra: dict[str, Tensor] = {}
    old = sampler
    if objective.corrects:
        setting = f"objective.correction={getattr(objective, 'correction', objective.name)}"
        old = _needed(proximal, "proximal", setting)
        weights, extra["corrected"] = objective.weights(old, sampler, mask)
        advantages = advantages * weights  # the policy term is linear in A, and weights are not negative
    loss, stats = objective.loss(logprobs, old, advantages, mask, denominator=denominator)
    if objective.kl:
        goal = _needed(reference, "reference", f"objective.kl={objective.kl:g}")
        drift = reference_kl(logprobs, goal, mask, denominator=denominator)
        loss = loss + objective.kl * drift
        extra["reference_kl"] = drift.detach() * denominator / stats["tokens"].clamp(min=1)
    return loss, stats | extra


def statistic_names(objective: Objective) -> tuple[str, ...]:
    """Names of the means of :func:`policy_loss` besides ``tokens``."""
    return objective.statistics + ("corrected",) * objective.corrects + ("reference_kl",) * (objective.kl > 0)


def check_rows(objective: Objective, rows: Iterable[Row]) -> None:
    """ValueError if ``objective`` needs whole traces and one comes in several rows."""
    if not objective.whole_traces:
        return
    seen = set()
    for row in rows:
        if row.key in seen:
            raise ValueError(
                f"the trace {row.key} comes in several rows, but objective.name={objective.name} weighs whole traces:"
                " do not split its rows"
            )
        seen.add(row.key)


def _needed(values: Tensor | None, name: str, setting: str) -> Tensor:
    if values is None:
        raise ValueError(f"{setting} needs the rows' {name} log-probs: LearnerGroup.score computes them")
    return values
