"""Outcome scores: the quality of an answer, whatever it cost."""

from __future__ import annotations

from envs.base import Score, Task
from rewards.outcome.exact import exact_match
from rewards.outcome.item_f1 import item_f1

__all__ = ["ANSWERS", "FOUND", "PURE", "score_answer"]

VALUES, FOUND = "values_f1", "found_f1"
ANSWERS = ("item_f1", "row_f1", VALUES, FOUND)  # parts of an answer's score, which are metrics without a prefix
PURE = ("table", "exact")  # kinds of gold that are scored from the answer alone, at any time


def score_answer(task: Task, answer: str) -> Score:
    """Score by the kind of the task's gold: ``table`` -> item-F1 (WideSearch), ``exact`` -> exact match (0 or 1).

    Parts: :data:`ANSWERS`. Those of an exact-match task are all its exact match, so that means over both are defined.
    """
    if task.gold.kind == "table":
        table = item_f1(answer, task.gold, task.prompt)
        parts = {"item_f1": table.f1, "row_f1": table.row_f1, VALUES: table.values_f1, FOUND: table.found_f1}
        return Score(value=table.f1, success=table.success, parts=parts)
    if task.gold.kind == "exact":
        match = exact_match(answer, task.gold)
        return Score(value=float(match), success=match, parts=dict.fromkeys(ANSWERS, float(match)))
    raise ValueError(f"task {task.key}: gold of kind {task.gold.kind!r} is not scored from the answer alone")
