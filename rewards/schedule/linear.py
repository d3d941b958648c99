"""``linear``: λ falls in equal steps to 0. The default."""

from __future__ import annotations


def share(step: int, end: float) -> float:
    """1 − step / end."""
    return 1 - step / end
