"""Whether a gold answer can be reached at all: scores the best possible answer."""

from __future__ import annotations

from envs.base import Gold
from rewards.outcome.exact import exact_match, normalise_answer
from rewards.outcome.item_f1 import item_f1, normalise_cell


def ideal_answer(gold: Gold) -> str:
    """A right answer as an agent would write it: the table, or the first accepted text."""
    if gold.kind != "table":
        return f"Answer: {gold.answers[0]}" if gold.answers else ""
    rows = [[" ".join(cell.split()) for cell in row] for row in (gold.columns, *gold.rows)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(gold.columns), *lines[1:]])


def unreachable(gold: Gold) -> str | None:
    """Why no answer earns the full score, with the field; None if one does."""
    if gold.kind == "exact":
        return _exact(gold)
    if gold.kind != "table":
        return None
    cells = {normalise_cell(cell) for row in gold.rows for cell in row}
    for alias, spelling in gold.aliases.items():
        if normalise_cell(spelling) not in cells:
            return f"gold.aliases.{alias} = {spelling!r}: is in no cell of the gold; write other spelling -> the gold's"
    if not item_f1(ideal_answer(gold), gold).success:
        return (
            "gold.rows: even the table itself, given as the answer, does not score 1: look for cells of only dashes,"
            " for ``` and |, and for aliases that make two rows one"
        )
    return None


def _exact(gold: Gold) -> str | None:
    for number, text in enumerate(gold.answers):
        if not exact_match(f"Answer: {text}", gold):
            return (
                f"gold.answers[{number}] = {text!r}: no answer can match it: scoring drops punctuation and the articles"
                " a, an, the, and reads the last line that begins with 'Answer:'; add what tells it apart"
            )
    accepted = {normalise_answer(text) for text in gold.answers}
    for alias, spelling in gold.aliases.items():
        if normalise_answer(spelling) not in accepted or not normalise_answer(alias):
            return (
                f"gold.aliases.{alias} = {spelling!r}: leads to none of the answers; write other spelling -> the gold's"
            )
    return None
