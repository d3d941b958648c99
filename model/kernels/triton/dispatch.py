"""Assignments sorted by expert on a GPU: a stable counting sort in three kernels, asynchronous.

Each block of assignments is counted; a scan over the blocks gives every (block, expert) its first place; each
block then sorts its assignments by (expert, position).

Shapes: T tokens, K experts per token, S = T · K, E experts. Semantics: :mod:`model.kernels.reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.common import INTERPRETED, power_of_two

BLOCK = 32 if INTERPRETED else 1024  # assignments sorted together
SCANNED = 4 if INTERPRETED else 128  # blocks, and
EXPERTS = 8  # experts that one program scans at a time


@triton.jit(do_not_specialize=["assignments"])
def _count(ids, counted, starts, assignments, E: tl.constexpr, E_PAD: tl.constexpr, BLOCK: tl.constexpr):
    """Per block: the number of each expert's assignments, and how many have a lower expert."""
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    real = at < assignments
    found = tl.histogram(tl.load(ids + at, mask=real, other=0).to(tl.int32), E_PAD, mask=real)
    expert = tl.arange(0, E_PAD)
    tl.store(counted + block * E + expert, found, mask=expert < E)
    tl.store(starts + block * E + expert, tl.cumsum(found, axis=0) - found, mask=expert < E)


@triton.jit(do_not_specialize=["blocks"])
def _scan(
    counted,
    starts,
    counts,
    offsets,
    blocks,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    EXPERTS: tl.constexpr,
    SCANNED: tl.constexpr,
):
    """Turn ``starts`` into the offset from a rank in the sorted block to the place in the whole order."""
    expert = tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS)
    other = tl.arange(0, E_PAD)
    loads = tl.load(counts + other, mask=other < E, other=0)
    first = tl.sum(tl.where(other[None, :] < expert[:, None], loads[None, :], 0), axis=1)
    tl.store(offsets + expert, first, mask=expert <= E)
    for start in range(0, blocks, SCANNED):
        block = start + tl.arange(0, SCANNED)
        at = block[:, None] * E + expert[None, :]
        real = (block < blocks)[:, None] & (expert < E)[None, :]
        found = tl.load(counted + at, mask=real, other=0)
        before = first[None, :] + tl.cumsum(found, axis=0) - found
        tl.store(starts + at, before - tl.load(starts + at, mask=real, other=0), mask=real)
        first += tl.sum(found, axis=0)


@triton.jit(do_not_specialize=["assignments"])
def _scatter(ids, starts, order, inverse, assignments, E: tl.constexpr, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    rank = tl.arange(0, BLOCK)
    at = block * BLOCK + rank
    expert = tl.load(ids + at, mask=at < assignments, other=32767).to(tl.int32)  # padding of the last block sorts last
    keys = tl.sort(expert * BLOCK + rank)
    assignment = block * BLOCK + keys % BLOCK
    real = assignment < assignments
    goal = rank + tl.load(starts + block * E + keys // BLOCK, mask=real, other=0)
    tl.store(order + goal, assignment, mask=real)
    tl.store(inverse + assignment, goal, mask=real)


def dispatch(ids_TK: Tensor, counts_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(order int32 [S], inverse int32 [T, K], offsets int32 [E + 1]), see the reference's ``dispatch``.

    ``counts_E`` must be the router's counts of exactly these ids, each below E.
    """
    assignments, experts = ids_TK.numel(), counts_E.shape[0]
    inverse = torch.empty(ids_TK.shape, dtype=torch.int32, device=ids_TK.device)
    order = inverse.new_empty(assignments)
    if not assignments:
        return order, inverse, inverse.new_zeros(experts + 1)
    offsets = inverse.new_empty(experts + 1)
    blocks = triton.cdiv(assignments, BLOCK)
    counted, starts = inverse.new_empty(2, blocks, experts).unbind()
    sizes = {"E": experts, "E_PAD": power_of_two(experts)}
    ids_TK = ids_TK.contiguous()
    _count[(blocks,)](ids_TK, counted, starts, assignments, **sizes, BLOCK=BLOCK, num_warps=4)
    _scan[(triton.cdiv(experts + 1, EXPERTS),)](
        counted, starts, counts_E, offsets, blocks, **sizes, EXPERTS=EXPERTS, SCANNED=SCANNED, num_warps=4
    )
    _scatter[(blocks,)](ids_TK, starts, order, inverse, assignments, E=experts, BLOCK=BLOCK, num_warps=4)
    return order, inverse, offsets
