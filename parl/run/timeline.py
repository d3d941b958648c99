"""Utilisation over time: spans of the loop with the engines' busy shares, in ``timeline.jsonl``.

A row: ``step``, ``what`` (collect, learn, sync, save), ``start`` and ``end`` in seconds since the epoch, and
for each pool the share of the span in which its engines computed (mean over its replicas). The learner
computes in ``learn``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

POOLS = ("policy", "frozen")


class Timeline:
    """Spans of one run, appended to ``path``. ``busy``: seconds that each pool's engines computed."""

    def __init__(self, path: Path, busy: Callable[[], dict[str, float]]) -> None:
        self._path, self._busy = path, busy
        self._last = busy()
        self._spans: list[dict[str, Any]] = []

    @contextmanager
    def span(self, step: int, what: str) -> Iterator[None]:
        """The time of the block."""
        start, before = time.time(), self._last
        yield
        end, self._last = time.time(), self._busy()
        row: dict[str, Any] = {"step": step, "what": what, "start": round(start, 3), "end": round(end, 3)}
        for pool in POOLS:  # restarted replicas count from 0
            spent = self._last[pool] - before[pool]
            row[pool] = round(min(max(spent, 0.0) / max(end - start, 1e-9), 1.0), 4)
        self._spans.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def utilisation(self) -> dict[str, float]:
        """Busy shares of the learner and each pool's engines since the last call."""
        spans, self._spans = self._spans, []
        return shares(spans)


def shares(spans: list[dict[str, Any]]) -> dict[str, float]:
    """``learner``, ``policy``, ``frozen``: busy shares, 0 to 1, of the time that ``spans`` cover."""
    lengths = [span["end"] - span["start"] for span in spans]
    total = max(sum(lengths), 1e-9)
    busy = {"learner": sum(n for span, n in zip(spans, lengths, strict=True) if span["what"] == "learn") / total}
    return busy | {pool: sum(s[pool] * n for s, n in zip(spans, lengths, strict=True)) / total for pool in POOLS}
