"""INT4 fake quantisation in groups of 32 on a GPU, in one pass over the weights.

The same operations in the same order as :func:`model.kimi.int4.quantize`, so values are bit-equal.
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
def _quantise(weight, out, groups, GROUPS: tl.constexpr):
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


def fake_quant_int4_g32(weight: Tensor) -> Tensor:
    """INT4 values of ``weight`` [..., I], bit-equal with :func:`model.kimi.int4.fake_quant`.

    ValueError for rows without whole groups.
    """
    if weight.shape[-1] % 32:
        raise ValueError(f"a matrix with {weight.shape[-1]} inputs has no whole groups of 32: it cannot be INT4")
    weight = weight.contiguous()
    out, groups = torch.empty_like(weight), weight.numel() // 32
    if groups:
        _quantise[(triton.cdiv(groups, _GROUPS),)](weight, out, groups, GROUPS=_GROUPS, num_warps=4)
    return out
