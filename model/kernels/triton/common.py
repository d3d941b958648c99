"""Shared by the Triton kernels: rounding, products, and the order of tiles in persistent programs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = bool(triton.knobs.runtime.interpret)  # decided when triton is imported, as in its decorators
NUMPY = tl.constexpr(INTERPRETED)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """``x`` float32 rounded to ``DTYPE``, ties to even. (The interpreter truncates bfloat16 instead.)"""
    if NUMPY and tl.bfloat16 == DTYPE:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    return x.to(DTYPE)


@triton.jit
def product(a, b, acc):
    """acc + a b in float32; widens in the interpreter, whose bfloat16 product multiplies bit patterns."""
    if NUMPY:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def quick_sigmoid(x):
    """sigmoid(x) within 3e-7, in four instructions instead of fourteen."""
    if NUMPY:
        return tl.sigmoid(x)
    return tl.inline_asm_elementwise(
        "{ .reg .f32 t; mul.f32 t, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 t, t; add.f32 t, t, 0f3F800000;"
        " rcp.approx.ftz.f32 $0, t; }",  # -log2(e), 1
        "=f,f",
        [x],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def place(tile, row_tiles, column_tiles, BAND: tl.constexpr):
    """(row tile, column tile) of a linear tile: bands of ``BAND`` row tiles, columns outside, to reuse L2."""
    band = tile // (BAND * column_tiles)
    first = band * BAND
    size = tl.minimum(row_tiles - first, BAND)
    inside = tile - first * column_tiles
    return first + inside % size, inside // size


def power_of_two(number: int) -> int:
    """The smallest power of two that is at least ``number``, as tile sides must be."""
    return 1 << max(number - 1, 0).bit_length()


def programs(tensor: Tensor, per_processor: int = 1) -> int:
    """Programs of a persistent grid; three under the interpreter, so that loops over tiles are exercised."""
    if not tensor.is_cuda:
        return 3
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count * per_processor
