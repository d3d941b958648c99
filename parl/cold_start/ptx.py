"""Demonstrations that are imitated beside reinforcement (``objective.ptx``): the PTX loss of InstructGPT and K2.

    L(θ) = L_policy(θ) + γ · L_sft(θ)        arXiv 2203.02155, Eq. 2; K2: arXiv 2507.20534, 3.2.3

γ is ``objective.ptx``. The texts are scripted demonstrations as the cold start has them, of tasks that it has not
seen; which ones an optimiser step gets is a function of its number, so a resumed run continues with the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

from parl.cold_start.rows import row_maker
from parl.cold_start.shipped import Recipe
from parl.learn.batch import TextRow
from parl.machine.cluster import actor, stop, wait

_FIRST = 1_000_000  # far behind the demonstrations of the cold start
_DEMOS = 4  # demonstrations of one optimiser step


class PtxTexts:
    """Makes the texts of each optimiser step in a Ray actor of its own; none where ``objective.ptx`` is 0."""

    def __init__(self, recipe: Recipe, tokenizer: Path, *, weight: float, deadline_s: float) -> None:
        """``weight``: ``objective.ptx``; ``deadline_s``: of the texts of one optimiser step."""
        self._deadline_s = deadline_s
        made = row_maker(recipe, tokenizer)
        self._worker = actor(*made, _label="the maker of texts") if weight else None

    def batches(self, step: int, count: int) -> Iterator[list[TextRow]]:
        """The texts of the ``count`` optimiser steps of training step ``step``, one after the other."""
        if self._worker is None:
            yield from repeat([], count)
            return
        starts = [_FIRST + (step * count + part) * _DEMOS for part in range(count)]
        calls = [self._worker.rows.remote(start, _DEMOS) for start in starts]
        for call in calls:
            yield wait(call, self._deadline_s, [self._worker])

    def close(self) -> None:
        """Stop the actor."""
        if self._worker is not None:
            stop([self._worker])
