"""Rows split in several, which must not change gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from parl.learn.rows import Row


def split_row(row: Row, pieces: int) -> list[Row]:
    """Cut the loss of ``row`` in at most ``pieces`` rows of (nearly) equally many trained tokens.

    Every piece keeps all tokens before its last trained one, the last piece all tokens; the masks are disjoint and
    cover the mask of ``row``. Fewer pieces come back where there are fewer trained tokens.
    """
    if pieces < 1:
        raise ValueError(f"pieces must be at least 1, not {pieces}")
    trained = np.flatnonzero(row.mask)
    chunks = [chunk for chunk in np.array_split(trained, min(pieces, max(len(trained), 1))) if len(chunk)]
    if len(chunks) < 2:
        return [row]
    rows = []
    for chunk in chunks:
        end = len(row.mask) if chunk is chunks[-1] else int(chunk[-1]) + 1
        mask = np.zeros(end, dtype=bool)
        mask[chunk] = True
        rows.append(
            replace(
                row,
                tokens=row.tokens[:end],
                mask=mask,
                logprobs=np.where(mask, row.logprobs[:end], np.float32(0)),
                advantages=np.where(mask, row.advantages[:end], np.float32(0)),
                **{name: _first(getattr(row, name), end) for name in ("routes", "proximal", "reference")},
                media=tuple(shown for shown in row.media if shown[0] < end),
            )
        )
    return rows


def _first(values: np.ndarray | None, end: int) -> np.ndarray | None:
    return None if values is None else values[:end]
