"""Log-probs of given tokens and entropies on a GPU, in one pass over the head's logits each way.

Nothing else of that size is kept: the gradient is recomputed from the logits and each row's logsumexp.
Shapes: M rows, V vocabulary.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.common import INTERPRETED, narrow

_BLOCK = 64 if INTERPRETED else 4096  # columns at a time


@triton.jit
def _forward(logits, targets, logprobs, entropies, sums, heat, V: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    base = logits + row.to(tl.int64) * V
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mean = tl.zeros([BLOCK], tl.float32)
    for start in range(0, V, BLOCK):
        column = start + tl.arange(0, BLOCK)
        x = tl.load(base + column, mask=column < V, other=float("-inf")).to(tl.float32) / heat
        higher = tl.maximum(tl.maximum(top, x), -3.0e38)  # a column of only -inf must not give NaN
        shrink, grow = tl.exp(top - higher), tl.exp(x - higher)
        total = total * shrink + grow
        mean = mean * shrink + tl.where(grow > 0, grow * x, 0.0)
        top = higher
    best = tl.max(top, axis=0)
    shrink = tl.exp(top - best)
    whole = tl.sum(total * shrink, axis=0)
    lse = best + tl.log(whole)
    x = tl.load(base + tl.load(targets + row)).to(tl.float32) / heat
    tl.store(logprobs + row, x - lse)
    tl.store(entropies + row, lse - tl.sum(mean * shrink, axis=0) / whole)
    tl.store(sums + row, lse)


@triton.jit
def _backward(dlogprobs, logits, targets, sums, dlogits, heat, V: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = row.to(tl.int64) * V + column
    x = tl.load(logits + at, mask=column < V, other=float("-inf")).to(tl.float32) / heat
    share = tl.exp(x - tl.load(sums + row))
    grad = tl.load(dlogprobs + row) / heat * (tl.where(column == tl.load(targets + row), 1.0, 0.0) - share)
    tl.store(dlogits + at, narrow(grad, dlogits.dtype.element_ty), mask=column < V)


def token_logprobs_fwd(logits_MV: Tensor, targets_M: Tensor, heat: float) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probs [M], entropies [M], logsumexps [M]), see the reference's ``token_logprobs_fwd``."""
    rows, vocabulary = logits_MV.shape
    outs = tuple(torch.empty(rows, device=logits_MV.device) for _ in range(3))
    if rows:
        given = logits_MV.contiguous(), targets_M.contiguous()
        _forward[(rows,)](*given, *outs, float(heat), V=vocabulary, BLOCK=_BLOCK, num_warps=8)
    return outs


def token_logprobs_bwd(
    dlogprobs_M: Tensor, logits_MV: Tensor, targets_M: Tensor, sums_M: Tensor, heat: float
) -> Tensor:
    """Gradient with respect to the logits, in their dtype."""
    rows, vocabulary = logits_MV.shape
    logits = logits_MV.contiguous()
    dlogits = torch.empty_like(logits)
    if rows:
        grid = (rows, triton.cdiv(vocabulary, _BLOCK))
        given = dlogprobs_M.contiguous(), logits, targets_M.contiguous(), sums_M
        _backward[grid](*given, dlogits, float(heat), V=vocabulary, BLOCK=_BLOCK, num_warps=8)
    return dlogits
