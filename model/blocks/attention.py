"""Causal attention over packed rows, and the largest logits per head.

Rows that begin alike, such as the episodes of one task, can share their beginnings (:class:`Shared`): those tokens are
computed once, and each row attends to them as to its own.

Shapes: B rows, T positions, U computed tokens, H heads, K heads of keys and values, Q/V widths of a head's queries and
values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from model.blocks.device import sent
from model.kernels import cpu_ops

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


@dataclass(frozen=True, slots=True)
class Shared:
    """Which positions of packed rows are computed: all except prefixes shared with an earlier row.

    ``own`` [rows]: number of first positions that an earlier row computes. ``place_T``: index of each
    position's token among the U computed ones. ``first_U``: the first position of each of them.
    """

    own: tuple[int, ...]
    place_T: Tensor
    first_U: Tensor


def packed_attention(
    query_UHQ: Tensor,
    key_UKQ: Tensor,
    value_UKV: Tensor,
    lengths: Sequence[int],
    scale: float | None,
    shared: Shared | None = None,
    starts_R: Tensor | None = None,
) -> Tensor:
    """Causal attention [U, H, V] within each of the packed rows, ``lengths`` long; without ``shared`` U is T.

    bfloat16 on a CPU uses our own kernel. On a GPU 16-bit rows go to torch's flash attention for rows of any length
    in one call, if ``starts_R`` is given (:func:`row_starts`). Everything else goes to torch, row by row.
    """
    if cpu_ops.attends(query_UHQ, value_UKV):
        own = (0,) * len(lengths) if shared is None else shared.own
        place_T = torch.arange(sum(lengths)) if shared is None else shared.place_T
        scale = query_UHQ.shape[2] ** -0.5 if scale is None else scale
        return _Attend.apply(query_UHQ, key_UKQ, value_UKV, tuple(lengths), own, place_T, scale)  # type: ignore
    query, key, value = query_UHQ, key_UKQ, value_UKV
    if shared is not None:
        query, key, value = (x.index_select(0, shared.place_T) for x in (query, key, value))
    if starts_R is not None and query.dtype in (torch.bfloat16, torch.float16):
        out = _varlen(query, key, value, starts_R, max(lengths), scale)
    else:
        out = causal_attention(query, key, value, lengths, scale)
    return out if shared is None else out.index_select(0, shared.first_U)


def row_starts(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Where each packed row begins, and the end, int32 [rows + 1]; None on a CPU, where nothing needs it."""
    if device.type == "cpu":
        return None
    return sent(torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cpu"), device)


def _varlen(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float | None) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    grouped = query.shape[1] != key.shape[1]
    causal = {"scale": scale, "window_size": (-1, 0), "enable_gqa": grouped}
    return varlen_attn(query, key, value, starts, starts, longest, longest, **causal)  # type: ignore[return-value]


class _Attend(torch.autograd.Function):
    """:func:`packed_attention` by ``model/kernels/cpu/attention.cpp``."""

    @staticmethod
    def forward(ctx, query_UHQ, key_UKQ, value_UKV, lengths, own, place_T, scale):
        inputs = query_UHQ.contiguous(), key_UKQ.contiguous(), value_UKV.contiguous()
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        layout = starts, torch.tensor(own, dtype=torch.int32), place_T.to(torch.int32)
        out, sums = cpu_ops.attend_fwd(*inputs, *layout, scale)
        ctx.save_for_backward(*inputs, out, sums, *layout)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx, grad_UHV):
        return (*cpu_ops.attend_bwd(grad_UHV, *ctx.saved_tensors, ctx.scale), None, None, None, None)  # type: ignore


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
