"""Micro-batches: rows of similar lengths, padded to one another, with the fields that a loss reads under the mask.

Shapes: B rows, T positions, L MoE layers, K experts a token, M trained tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.media import MediaBatch, picture
from model.picture_size import picture_tokens
from model.vision_config import MediaLimits
from parl.advantage import Row

_SIMILAR = 0.5  # a row joins a micro-batch if it is at least this long beside the longest


@dataclass(slots=True, kw_only=True)
class TextRow:
    """One demonstration trace: tokens int32 [T] and the loss weight float32 [T] of each.

    ``media``: the pictures in it, (position of the first placeholder, PNG file).
    """

    tokens: np.ndarray
    weights: np.ndarray
    media: tuple[tuple[int, bytes], ...] = ()


@dataclass(slots=True)
class Batch:
    """Padded micro-batch: B rows, T positions; ``token`` fields are gathered under the mask, [M]."""

    rows: list[Row] | list[TextRow]
    tokens_BT: Tensor
    mask_BT: Tensor
    routes_BTLK: Tensor | None
    media: MediaBatch | None = None

    def gather(self, name: str) -> Tensor:
        """Field ``name`` of every row at the masked positions, float32 [M]."""
        out = torch.zeros(self.tokens_BT.shape)
        for i, row in enumerate(self.rows):
            values = getattr(row, name)
            out[i, : len(values)] = torch.from_numpy(np.array(values, np.float32))
        return out[:, 1:][self.mask_BT[:, 1:]]

    def spread(self, values_M: Tensor) -> Tensor:
        """Back to rows, [B, T - 1], with zeros between: the inverse of gathering under the mask."""
        shape = (self.tokens_BT.shape[0], self.tokens_BT.shape[1] - 1)
        return values_M.new_zeros(shape).masked_scatter(self.mask_BT[:, 1:], values_M)


def micro_batches(rows: Sequence, limit: int) -> list[list]:
    """Rows by falling length in groups of at most ``limit`` padded tokens and of similar lengths (little padding)."""
    groups: list[list] = []
    for row in sorted(rows, key=lambda r: -len(r.tokens)):
        longest = len(groups[-1][0].tokens) if groups else 0
        if groups and (len(groups[-1]) + 1) * longest <= limit and len(row.tokens) >= _SIMILAR * longest:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def pad(rows: list, mask: Callable[[Row | TextRow], np.ndarray], limits: MediaLimits | None = None) -> Batch:
    """Right-padded tensors of ``rows``; an MoE policy's rows must all carry routes, or none.

    ``limits``: how their pictures are cut; ValueError where rows have pictures and there are no limits.
    """
    length = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    masks = torch.zeros(len(rows), length, dtype=torch.bool)
    first = getattr(rows[0], "routes", None)
    routes = None if first is None else torch.full((len(rows), length, *first.shape[1:]), -1, dtype=torch.int16)
    for i, row in enumerate(rows):
        count = len(row.tokens)
        tokens[i, :count] = torch.from_numpy(row.tokens.astype(np.int64))
        masks[i, :count] = torch.from_numpy(np.array(mask(row)))
        if routes is not None:
            routes[i, :count] = torch.from_numpy(np.array(row.routes))
    return Batch(rows, tokens, masks, routes, _media(rows, tokens, limits))


def _media(rows: list, tokens_BT: Tensor, limits: MediaLimits | None) -> MediaBatch | None:
    """The pictures of ``rows`` and their places. A placeholder that the policy wrote itself is none of them."""
    shown = [(i, start, png) for i, row in enumerate(rows) for start, png in row.media]
    if not shown:
        return None
    if limits is None:
        raise ValueError("a row shows pictures, but the model has no vision section")
    places = torch.zeros(tokens_BT.shape, dtype=torch.bool)
    for i, start, png in shown:
        places[i, start : start + picture_tokens(png, limits)] = True
    return MediaBatch.of([picture(png, limits) for _, _, png in shown], places)
