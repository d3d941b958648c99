"""INT4 fake quantisation in groups of 32 on a GPU, in one pass over the weights.

The same operations in the same order as :func:`model.kimi.int4.quantize`, so codes and scales are bit-equal.
Shapes: O rows, I inputs, G = I / 32 groups.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.common import INTERPRETED, narrow

_SIZE = tl.constexpr(32)
_GROUPS = 64 if INTERPRETED else 128  # groups per program
_MAGIC = tl.constexpr(12582912.0)  # 1.5 · 2^23: adding it rounds a float32 to an integer, ties to even


@triton.jit
def _quantise(weight, out, words, scales, groups, PACK: tl.constexpr, GROUPS: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    real = group < groups
    at = group[:, None] * _SIZE + tl.arange(0, _SIZE)[None, :]
    values = tl.load(weight + at, mask=real[:, None], other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(values), axis=1)
    scale = tl.maximum(tl.div_rn(largest, tl.full([GROUPS], 7.0, tl.float32)), 1e-5)
    scale = narrow(scale, tl.bfloat16)
    wide = scale.to(tl.float32)[:, None] + tl.zeros_like(values)
    code = tl.div_rn(values, wide)
    code = tl.minimum(tl.maximum((code + _MAGIC) - _MAGIC, -7.0), 7.0)
    tl.store(out + at, narrow(code * wide, out.dtype.element_ty), mask=real[:, None])
    if PACK:
        nibbles = tl.reshape(code.to(tl.int32) + 8, [GROUPS, 4, 8]) << (tl.arange(0, 8) * 4)[None, None, :]
        word = group[:, None] * 4 + tl.arange(0, 4)[None, :]
        tl.store(words + word, tl.sum(nibbles, axis=2), mask=real[:, None])
        tl.store(scales + group, scale, mask=real)


def fake_quant_int4_g32(
    weight: Tensor, out: Tensor | None = None, *, pack: bool = False
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(INT4 values of ``weight`` [..., I], packed int32 [..., I / 8] or None, scales [..., G] or None).

    ``out`` receives the first. Bit-equal with :func:`model.kimi.int4.fake_quant`,
    :func:`model.kimi.int4.packed`. ValueError for rows without whole groups.
    """
    if weight.shape[-1] % 32:
        raise ValueError(f"a matrix with {weight.shape[-1]} inputs has no whole groups of 32: it cannot be INT4")
    weight = weight.contiguous()
    out = torch.empty_like(weight) if out is None else out
    words = scales = None
    if pack:
        words = weight.new_empty(*weight.shape[:-1], weight.shape[-1] // 8, dtype=torch.int32)
        scales = weight.new_empty(*weight.shape[:-1], weight.shape[-1] // 32, dtype=torch.bfloat16)
    groups = weight.numel() // 32
    if groups:
        grid = (triton.cdiv(groups, _GROUPS),)
        given = (weight, out, out if words is None else words, out if scales is None else scales)
        _quantise[grid](*given, groups, PACK=pack, GROUPS=_GROUPS, num_warps=4)
    return out, words, scales
