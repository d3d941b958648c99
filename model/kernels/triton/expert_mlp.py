"""The experts on a GPU, forward: gathering loads, SwiGLU in the product's epilogue, one sum per token.

Three kernels: ``up`` (x W13ᵀ, hidden and activation out), ``down`` (W2, grouped.py), ``combine`` (Σ_k weight
· y + base in slot order). Only x and hidden outlive the forward pass.

Shapes: T tokens, D hidden, E experts, K experts per token, I expert width, S = T · K. Semantics:
:mod:`model.kernels.reference`, except that the activation is rounded to x's dtype before the second product,
as matrix units require.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from model.kernels.triton.common import narrow, place, power_of_two, product, programs, quick_sigmoid
from model.kernels.triton.grouped import list_tiles, load_tile, rows_times
from model.kernels.triton.settings import descriptors_for, staging, tiles_for


@triton.jit
def _up(
    x,
    w13,
    order,
    offsets,
    table,
    hidden,
    activation,
    K: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """hidden [S, 2 I] = x[token] W13ᵀ, gate and up side by side, and activation [S, I] = silu(gate) · up."""
    row_tiles = tl.load(table)
    column_tiles: tl.constexpr = (WIDTH + BN - 1) // BN
    for tile in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        m, n = place(tile, row_tiles, column_tiles, BAND)
        expert, first = tl.load(table + 1 + 2 * m), tl.load(table + 2 + 2 * m)
        end = tl.load(offsets + expert + 1)
        row, column = first + tl.arange(0, BM), n * BN + tl.arange(0, BN)
        token = tl.load(order + tl.minimum(row, end - 1)) // K
        bounded = tl.minimum(column, WIDTH - 1)
        gate, up = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
        for start in range(0, D, BK):
            depth = start + tl.arange(0, BK)
            rows = load_tile(x, token, row, depth, D, BK, True)
            if DESCRIPTORS:
                wg = w13.load([expert * (2 * WIDTH) + n * BN, start])
                wu = w13.load([expert * (2 * WIDTH) + WIDTH + n * BN, start])
            else:
                matrix = w13 + expert.to(tl.int64) * (2 * WIDTH * D)
                wg = load_tile(matrix, bounded, column, depth, D, BK, True)
                wu = load_tile(matrix, bounded + WIDTH, column, depth, D, BK, True)
            gate = product(rows, tl.trans(wg), gate)
            up = product(rows, tl.trans(wu), up)
        real = (row < end)[:, None] & (column < WIDTH)[None, :]
        at = hidden + row.to(tl.int64)[:, None] * (2 * WIDTH) + column[None, :]
        tl.store(at, narrow(gate, hidden.dtype.element_ty), mask=real)
        tl.store(at + WIDTH, narrow(up, hidden.dtype.element_ty), mask=real)
        active = narrow(gate * quick_sigmoid(gate) * up, activation.dtype.element_ty)
        tl.store(activation + row.to(tl.int64)[:, None] * WIDTH + column[None, :], active, mask=real)


@triton.jit
def _spread(x, inverse, out, D: tl.constexpr, K: tl.constexpr, BD: tl.constexpr):
    token = tl.program_id(0)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    row = tl.load(x + token.to(tl.int64) * D + column, mask=column < D)
    for k in tl.static_range(K):
        goal = tl.load(inverse + token * K + k).to(tl.int64)
        tl.store(out + goal * D + column, row, mask=column < D)


def spread(x_TD: Tensor, inverse_TK: Tensor) -> Tensor:
    """[S, D]: each token's row at the places of its assignments; read once, written K times."""
    (tokens, hidden), top_k = x_TD.shape, inverse_TK.shape[1]
    out, columns = x_TD.new_empty(tokens * top_k, hidden), min(2048, power_of_two(hidden))
    _spread[(tokens, triton.cdiv(hidden, columns))](x_TD, inverse_TK, out, D=hidden, K=top_k, BD=columns, num_warps=4)
    return out


@triton.jit(do_not_specialize=["places"])
def _combine(
    rows_in,
    inverse,
    weights,
    base,
    partial,
    out,
    dweights,
    places,
    D: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BASED: tl.constexpr,
    PARTIALS: tl.constexpr,
    BD: tl.constexpr,
):
    """out [T, D] = Σ_k weight · rows_in[inverse[t, k]] + base; with ``PARTIALS`` also dweights, summed over them."""
    token = tl.program_id(0)
    column = tl.program_id(1) * BD + tl.arange(0, BD)
    real = column < D
    acc = tl.zeros([BD], tl.float32)
    for k in tl.static_range(K):
        row = tl.load(inverse + token * K + k).to(tl.int64)
        y = tl.load(rows_in + row * D + column, mask=real, other=0.0).to(tl.float32)
        if WEIGHTED:
            y = y * tl.load(weights + token * K + k)
        acc += y
    at = token.to(tl.int64) * D + column
    if BASED:
        acc += tl.load(base + at, mask=real, other=0.0).to(tl.float32)
    tl.store(out + at, narrow(acc, out.dtype.element_ty), mask=real)
    if PARTIALS > 0 and tl.program_id(1) == 0:  # the weights' gradient: one partial sum per column tile
        slot = tl.arange(0, K_PAD)
        rows = tl.load(inverse + token * K + slot, mask=slot < K, other=0).to(tl.int64)
        total = tl.zeros([K_PAD], tl.float32)
        for part in range(0, PARTIALS):
            total += tl.load(partial + part * places + rows, mask=slot < K, other=0.0)
        tl.store(dweights + token * K + slot, total, mask=slot < K)


def combine(
    rows_SD: Tensor,
    inverse_TK: Tensor,
    weights_TK: Tensor | None,
    base_TD: Tensor | None,
    out_TD: Tensor,
    partial: Tensor | None = None,
    dweights_TK: Tensor | None = None,
) -> Tensor:
    """Fill ``out_TD`` with each token's weighted sum over its rows, in slot order, plus ``base_TD``.

    With ``partial`` float32 [parts, S], ``dweights_TK`` is filled with its sums in rising order.
    """
    (tokens, hidden), top_k = out_TD.shape, inverse_TK.shape[1]
    columns = min(512, power_of_two(hidden))  # wider float32 loads reach 60 % of this speed
    _combine[(tokens, triton.cdiv(hidden, columns))](
        rows_SD,
        inverse_TK,
        rows_SD if weights_TK is None else weights_TK,
        rows_SD if base_TD is None else base_TD,
        rows_SD if partial is None else partial,
        out_TD,
        out_TD if dweights_TK is None else dweights_TK,
        len(rows_SD),
        D=hidden,
        K=top_k,
        K_PAD=power_of_two(top_k),
        WEIGHTED=weights_TK is not None,
        BASED=base_TD is not None,
        PARTIALS=0 if partial is None else len(partial),
        BD=columns,
        num_warps=4,
    )
    return out_TD


def expert_mlp_fwd(
    x_TD: Tensor,
    w13_E2ID: Tensor,
    w2_EDI: Tensor,
    order_S: Tensor,
    inverse_TK: Tensor,
    offsets: Tensor,
    weights_TK: Tensor,
    base_TD: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(out [T, D], hidden [S, 2 I]), see the reference's ``expert_mlp_fwd``; float32, bfloat16 or float16."""
    x_TD, w13, w2 = x_TD.contiguous(), w13_E2ID.contiguous(), w2_EDI.contiguous()
    rows, (_, hidden_size, width) = len(order_S), w2.shape
    hidden, out = x_TD.new_empty(rows, 2 * width), torch.empty_like(x_TD)
    if not rows:
        return out, hidden
    top_k = inverse_TK.shape[1]
    descriptors = descriptors_for(x_TD, w13, w2)
    activation = x_TD.new_empty(rows, width)
    tiles, down = tiles_for("up", x_TD), tiles_for("down", x_TD)
    table = list_tiles(offsets, rows, tiles.rows)
    _up[(programs(x_TD),)](
        x_TD,
        TensorDescriptor.from_tensor(w13.flatten(0, 1), [tiles.columns, tiles.depth]) if descriptors else w13,
        order_S,
        offsets,
        table,
        hidden,
        activation,
        K=top_k,
        D=hidden_size,
        WIDTH=width,
        DESCRIPTORS=descriptors,
        BAND=tiles.band,
        **tiles.constants(),
    )
    y_SD = torch.empty(rows, hidden_size, dtype=staging(x_TD), device=x_TD.device)
    table = table if down.rows == tiles.rows else None
    rows_times(activation, w2, offsets, y_SD, down, transposed=True, descriptors=descriptors, table=table)
    base = None if base_TD is None else base_TD.contiguous()
    return combine(y_SD, inverse_TK, weights_TK.contiguous(), base, out), hidden
