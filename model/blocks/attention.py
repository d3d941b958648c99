"""Causal attention over packed rows, and the largest logits per head.

Shapes: B rows, T positions, H heads, Q/V widths of a head's queries and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

_QUERIES = 256  # queries whose logits are held at once when the largest are collected


@torch.no_grad()
def max_logits(query_BHTQ: Tensor, key_BHTQ: Tensor, real_BT: Tensor, scale: float) -> Tensor:
    """Each head's largest logit scale · q_i · k_j, j <= i, over the queries in ``real_BT``: [H].

    Padding is on the right, so a real query has real keys before it. -inf without a real query.
    """
    length = query_BHTQ.shape[2]
    best_H = query_BHTQ.new_full((query_BHTQ.shape[1],), -torch.inf)
    places = torch.arange(length, device=query_BHTQ.device)
    for start in range(0, length, _QUERIES):
        end = min(start + _QUERIES, length)
        logits = query_BHTQ[:, :, start:end] @ key_BHTQ[:, :, :end].mT * scale
        seen = real_BT[:, start:end, None] & (places[:end] <= places[start:end, None])
        best_H = torch.maximum(best_H, logits.masked_fill(~seen[:, None], -torch.inf).amax((0, 2, 3)))
    return best_H


def causal_attention(
    query_THQ: Tensor, key_THQ: Tensor, value_THV: Tensor, lengths: Sequence[int], scale: float | None
) -> Tensor:
    """Causal attention within each of the rows packed in T, ``lengths`` long: [T, H, V].

    Neighbours of equal length share a call. ``scale`` None: 1 / sqrt(Q), with SDPA's rounding. Keys and values may
    have fewer heads, each shared by as many neighbouring query heads.
    """
    outs = []
    for parts in zip(*(runs(x, lengths) for x in (query_THQ, key_THQ, value_THV)), strict=True):
        grouped = parts[0].shape[1] != parts[1].shape[1]
        out = F.scaled_dot_product_attention(*parts, is_causal=True, scale=scale, enable_gqa=grouped)
        outs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outs)


def runs(x_THQ: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """[rows, H, length, Q] of each run of rows of one length; one split, so the gradient is assembled once."""
    runs = [(len(list(same)), length) for length, same in groupby(lengths)]
    parts = x_THQ.split([count * length for count, length in runs])
    return [part.unflatten(0, run).transpose(1, 2) for part, run in zip(parts, runs, strict=True)]
