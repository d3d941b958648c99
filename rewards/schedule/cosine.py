"""``cosine``: λ stays high at first and falls along half a cosine to 0."""

from __future__ import annotations

import math


def share(step: int, end: float) -> float:
    """(1 + cos(π · step / end)) / 2."""
    return (1 + math.cos(math.pi * step / end)) / 2
