"""Outcome scores: the quality of an answer, whatever it cost."""

from __future__ import annotations

from dataclasses import dataclass, field

from envs.base import Task
from rewards.outcome.exact import exact_match
from rewards.outcome.item_f1 import item_f1

__all__ = ["Outcome", "score_answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """``score`` in [0, 1]; ``success`` is a perfect answer; ``details`` always holds ``item_f1`` and ``row_f1``."""

    score: float = 0.0
    success: bool = False
    details: dict[str, float] = field(default_factory=dict)


def score_answer(task: Task, answer: str) -> Outcome:
    """Score by the kind of the task's gold: ``table`` -> item-F1 (WideSearch), ``exact`` -> exact match (0 or 1).

    An exact-match task's ``item_f1`` and ``row_f1`` are its exact match, so that means over all families are defined.
    """
    if task.gold.kind == "table":
        table = item_f1(answer, task.gold)
        details = {"item_f1": table.f1, "row_f1": table.row_f1}
        return Outcome(score=table.f1, success=table.success, details=details)
    if task.gold.kind == "exact":
        match = exact_match(answer, task.gold)
        return Outcome(score=float(match), success=match, details={"item_f1": float(match), "row_f1": float(match)})
    raise ValueError(f"task {task.key}: unknown gold kind {task.gold.kind!r}; known: 'table', 'exact'")
