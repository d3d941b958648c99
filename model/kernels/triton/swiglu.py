"""silu(gate) · up of a dense feed-forward part on a GPU, in one pass over memory each way.

The matrix product before it lays gate and up of a token side by side; only that is kept for the backward pass.
Shapes: T rows, I width.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.common import INTERPRETED, narrow, quick_sigmoid

_BLOCK = 64 if INTERPRETED else 1024


@triton.jit
def _forward(gate_up, out, I: tl.constexpr, BLOCK: tl.constexpr):  # noqa: E741
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at = column < I, gate_up + row * 2 * I + column
    gate = tl.load(at, mask=inside).to(tl.float32)
    up = tl.load(at + I, mask=inside).to(tl.float32)
    tl.store(out + row * I + column, narrow(gate * quick_sigmoid(gate) * up, out.dtype.element_ty), mask=inside)


@triton.jit
def _backward(dout, gate_up, dgate_up, I: tl.constexpr, BLOCK: tl.constexpr):  # noqa: E741
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside, at = column < I, row * 2 * I + column
    gate = tl.load(gate_up + at, mask=inside).to(tl.float32)
    up = tl.load(gate_up + at + I, mask=inside).to(tl.float32)
    grad = tl.load(dout + row * I + column, mask=inside).to(tl.float32)
    share = quick_sigmoid(gate)
    dgate = grad * up * share * (1.0 + gate * (1.0 - share))
    tl.store(dgate_up + at, narrow(dgate, dgate_up.dtype.element_ty), mask=inside)
    tl.store(dgate_up + at + I, narrow(grad * gate * share, dgate_up.dtype.element_ty), mask=inside)


def swiglu_fwd(gate_up_T2I: Tensor) -> Tensor:
    """silu(gate) · up [T, I], computed in float32 and rounded once."""
    rows, width = len(gate_up_T2I), gate_up_T2I.shape[1] // 2
    out = gate_up_T2I.new_empty(rows, width)
    if rows:
        _forward[(rows, triton.cdiv(width, _BLOCK))](gate_up_T2I.contiguous(), out, I=width, BLOCK=_BLOCK)
    return out


def swiglu_bwd(dout_TI: Tensor, gate_up_T2I: Tensor) -> Tensor:
    """Gradient [T, 2 I] with respect to gate and up."""
    rows, width = dout_TI.shape
    dgate_up = torch.empty_like(gate_up_T2I)
    if rows:
        given = dout_TI.contiguous(), gate_up_T2I, dgate_up
        _backward[(rows, triton.cdiv(width, _BLOCK))](*given, I=width, BLOCK=_BLOCK)
    return dgate_up
