"""Rotary positions of the last part of each head on a GPU, in place.

Shapes: N tokens, H heads, Q width of a head, R of it rotated (the last), P positions in the tables.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.common import narrow


@triton.jit
def _rotate(x, cos, sin, P, sign, H: tl.constexpr, Q: tl.constexpr, R: tl.constexpr, NEAR: tl.constexpr,
            HEADS: tl.constexpr, PAIRS: tl.constexpr):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, HEADS)[:, None], tl.arange(0, PAIRS)[None, :]
    inside = (head < H) & (pair < R // 2)
    first = x + token * H * Q + head * Q + (Q - R) + pair * (2 if NEAR else 1)
    second = first + (1 if NEAR else R // 2)
    angle = (token % P) * (R // 2) + pair
    c = tl.load(cos + angle, mask=pair < R // 2)
    s = tl.load(sin + angle, mask=pair < R // 2) * sign
    a, b = tl.load(first, mask=inside).to(tl.float32), tl.load(second, mask=inside).to(tl.float32)
    tl.store(first, narrow(a * c - b * s, x.dtype.element_ty), mask=inside)
    tl.store(second, narrow(a * s + b * c, x.dtype.element_ty), mask=inside)


def rotate_tails_(x_NHQ: Tensor, cos_PR: Tensor, sin_PR: Tensor, near: bool, back: bool) -> None:
    """Rotate the last R of each head by the angles of the token's position, N modulo P; ``back``: the other way.

    ``near``: pairs are neighbours (2i, 2i + 1), else (i, i + R / 2). ``x_NHQ`` is contiguous; tables [P, R / 2].
    """
    tokens, heads, width = x_NHQ.shape
    half = cos_PR.shape[1]
    if tokens:
        sizes = {"HEADS": triton.next_power_of_2(heads), "PAIRS": triton.next_power_of_2(half)}
        tables = cos_PR.contiguous(), sin_PR.contiguous(), len(cos_PR)
        _rotate[(tokens,)](x_NHQ, *tables, -1.0 if back else 1.0, heads, width, 2 * half, near, **sizes)
