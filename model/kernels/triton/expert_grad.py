"""The experts on a GPU, backward: kernels that recompute the activation from hidden and save nothing else.

``dact``: dA = dout W2, and in its epilogue the activation's gradient, weight · activation for dW2, and <dA,
A>, the weights' gradient, as one partial sum per column tile. ``dw`` twice: dW2 and dW13, contracted over
each expert's rows. ``dx`` (grouped.py) and ``combine`` (expert_mlp.py): the rows' gradients, summed over a
token's experts in slot order. No atomics, so every run gives the same bits. If the copy engine is available,
rows of dout and x are first copied to their experts' places (``spread``), since it cannot gather.

Shapes: T tokens, D hidden, E experts, K experts per token, I expert width, S = T · K. Semantics and sources:
:mod:`model.kernels.reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from model.kernels.triton.common import narrow, place, product, programs, quick_sigmoid
from model.kernels.triton.expert_mlp import combine, spread
from model.kernels.triton.grouped import list_tiles, load_tile, rows_times
from model.kernels.triton.settings import descriptors_for, spread_for, staging, tiles_for


@triton.jit
def halves(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The left and the right half of a tile's columns."""
    return tl.split(tl.permute(tl.reshape(tile, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))


@triton.jit
def _dact_tile(da, row, inside, column, weight, hidden, dhidden, weighted, WIDTH: tl.constexpr):
    """From a tile of dA: its part of <dA, A>; stores dhidden and weight · activation."""
    real = inside[:, None] & (column < WIDTH)[None, :]
    at = row.to(tl.int64)[:, None] * (2 * WIDTH) + column[None, :]
    gate = tl.load(hidden + at, mask=real, other=0.0).to(tl.float32)
    up = tl.load(hidden + at + WIDTH, mask=real, other=0.0).to(tl.float32)
    sigmoid = quick_sigmoid(gate)
    silu = gate * sigmoid
    active = silu * up  # zero outside, as hidden was read
    into = weighted + row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    tl.store(into, narrow(active * weight[:, None], weighted.dtype.element_ty), mask=real)
    total = tl.sum(da * active, axis=1)
    da = da * weight[:, None]
    dgate = da * up * (sigmoid + silu * (1 - sigmoid))
    tl.store(dhidden + at, narrow(dgate, dhidden.dtype.element_ty), mask=real)
    tl.store(dhidden + at + WIDTH, narrow(da * silu, dhidden.dtype.element_ty), mask=real)
    return total


@triton.jit(do_not_specialize=["places"])
def _dact(
    dout,
    w2,
    hidden,
    order,
    offsets,
    table,
    weights,
    dhidden,
    weighted,
    partial,
    places,
    K: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    SPREAD: tl.constexpr,
    BAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """dhidden [S, 2 I], weighted = weight · activation [S, I], partial [column tiles, S] of <dA, A>."""
    row_tiles = tl.load(table)
    column_tiles: tl.constexpr = (WIDTH + BN - 1) // BN
    for tile in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        m, n = place(tile, row_tiles, column_tiles, BAND)
        expert, first = tl.load(table + 1 + 2 * m), tl.load(table + 2 + 2 * m)
        end = tl.load(offsets + expert + 1)
        row, column = first + tl.arange(0, BM), n * BN + tl.arange(0, BN)
        assignment = tl.load(order + tl.minimum(row, end - 1))
        da = tl.zeros([BM, BN], tl.float32)
        for start in range(0, D, BK):
            depth = start + tl.arange(0, BK)
            rows = dout.load([first, start]) if SPREAD else load_tile(dout, assignment // K, row, depth, D, BK, True)
            if DESCRIPTORS:
                matrix = w2.load([expert * D + start, n * BN])
            else:
                at = w2 + expert.to(tl.int64) * (D * WIDTH)
                matrix = load_tile(at, depth, depth < D, column, WIDTH, BN, D % BK == 0)
            da = product(rows, matrix, da)
        weight = tl.load(weights + assignment)
        inside, first_column = row < end, n * BN
        low, high = halves(da, BM, BN)  # in halves: otherwise registers spill
        if BN > 128:
            quarter = first_column + tl.arange(0, BN // 4)
            one, two = halves(low, BM, BN // 2)
            total = _dact_tile(one, row, inside, quarter, weight, hidden, dhidden, weighted, WIDTH)
            total += _dact_tile(two, row, inside, quarter + BN // 4, weight, hidden, dhidden, weighted, WIDTH)
            one, two = halves(high, BM, BN // 2)
            total += _dact_tile(one, row, inside, quarter + BN // 2, weight, hidden, dhidden, weighted, WIDTH)
            total += _dact_tile(two, row, inside, quarter + BN // 4 * 3, weight, hidden, dhidden, weighted, WIDTH)
        else:
            half = first_column + tl.arange(0, BN // 2)
            total = _dact_tile(low, row, inside, half, weight, hidden, dhidden, weighted, WIDTH)
            total += _dact_tile(high, row, inside, half + BN // 2, weight, hidden, dhidden, weighted, WIDTH)
        tl.store(partial + n * places + row, total, mask=inside)


@triton.jit
def _dw(
    left,
    right,
    left_tiles,
    right_tiles,
    order,
    offsets,
    out,
    K: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
    E: tl.constexpr,
    GATHER_LEFT: tl.constexpr,
    GATHER_RIGHT: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    BAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """out[e] [M, N] = leftᵀ right over the rows of expert e."""
    row_tiles: tl.constexpr = (M + BM - 1) // BM
    column_tiles: tl.constexpr = (N + BN - 1) // BN
    each: tl.constexpr = row_tiles * column_tiles
    for tile in range(tl.program_id(0), E * each, tl.num_programs(0)):
        expert = tile // each
        m, n = place(tile % each, row_tiles, column_tiles, BAND)
        begin, end = tl.load(offsets + expert), tl.load(offsets + expert + 1)
        row, column = m * BM + tl.arange(0, BM), n * BN + tl.arange(0, BN)
        acc = tl.zeros([BM, BN], tl.float32)
        if DESCRIPTORS:  # whole blocks of rows through the copy engine, then the rest
            whole = begin + (end - begin) // BK * BK
            for start in range(begin, whole, BK):
                acc = product(left_tiles.load([start, m * BM]).T, right_tiles.load([start, n * BN]), acc)
            begin = whole
        for start in tl.range(begin, end, BK, num_stages=1 if DESCRIPTORS else None):
            place_in = start + tl.arange(0, BK)
            real = place_in < end
            left_row, right_row = place_in, place_in
            if GATHER_LEFT:
                left_row = tl.load(order + place_in, mask=real, other=0) // K
            if GATHER_RIGHT:
                right_row = tl.load(order + place_in, mask=real, other=0) // K
            a = load_tile(left, left_row, real, row, M, BM, False)
            b = load_tile(right, right_row, real, column, N, BN, False)
            acc = product(tl.trans(a), b, acc)
        at = out + (expert.to(tl.int64) * M + row)[:, None] * N + column[None, :]
        tl.store(at, narrow(acc, out.dtype.element_ty), mask=(row < M)[:, None] & (column < N)[None, :])


def _weight_grad(
    left: Tensor, right: Tensor, order_S: Tensor, offsets: Tensor, out: Tensor, top_k: int, gathered: str | None
) -> Tensor:
    """Fill ``out`` [E, M, N] with leftᵀ right over each expert's rows; ``gathered``: the side by token."""
    experts, rows, columns = out.shape
    tiles = tiles_for("dw", left)
    descriptors = gathered is None
    given: tuple = left, right
    if descriptors:
        given = (
            TensorDescriptor.from_tensor(left, [tiles.depth, tiles.rows]),
            TensorDescriptor.from_tensor(right, [tiles.depth, tiles.columns]),
        )
    _dw[(programs(left),)](
        left,
        right,
        *given,
        order_S,
        offsets,
        out,
        K=top_k,
        M=rows,
        N=columns,
        E=experts,
        GATHER_LEFT=gathered == "left",
        GATHER_RIGHT=gathered == "right",
        DESCRIPTORS=descriptors,
        BAND=tiles.band,
        **tiles.constants(),
    )
    return out


def _activation_grad(
    dout: Tensor,
    w2: Tensor,
    hidden: Tensor,
    order: Tensor,
    offsets: Tensor,
    table: Tensor,
    weights: Tensor,
    descriptors: bool,
    spreading: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dhidden [S, 2 I], weight · activation [S, I], partial sums [column tiles, S] of the weights' gradient)."""
    rows, (_, hidden_size, width) = len(order), w2.shape
    tiles = tiles_for("dact", dout)
    descriptors = descriptors and hidden_size % tiles.depth == 0  # otherwise a tile would reach into the next expert
    dhidden, weighted = torch.empty_like(hidden), hidden.new_empty(rows, width)
    partial = torch.empty(triton.cdiv(width, tiles.columns), rows, device=dout.device)
    _dact[(programs(hidden),)](
        TensorDescriptor.from_tensor(dout, [tiles.rows, tiles.depth]) if spreading else dout,
        TensorDescriptor.from_tensor(w2.flatten(0, 1), [tiles.depth, tiles.columns]) if descriptors else w2,
        hidden,
        order,
        offsets,
        table,
        weights,
        dhidden,
        weighted,
        partial,
        rows,
        K=weights.shape[1],
        D=hidden_size,
        WIDTH=width,
        DESCRIPTORS=descriptors,
        SPREAD=spreading,
        BAND=tiles.band,
        **tiles.constants(),
    )
    return dhidden, weighted, partial


def expert_mlp_bwd(
    dout_TD: Tensor,
    x_TD: Tensor,
    w13_E2ID: Tensor,
    w2_EDI: Tensor,
    hidden: Tensor,
    order_S: Tensor,
    inverse_TK: Tensor,
    offsets: Tensor,
    weights_TK: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (dx, dw13, dw2, dweights float32), see the reference's ``expert_mlp_bwd``."""
    x_TD, w13, w2, dout = (t.contiguous() for t in (x_TD, w13_E2ID, w2_EDI, dout_TD))
    rows, top_k = len(order_S), inverse_TK.shape[1]
    dx, dweights = torch.empty_like(x_TD), torch.empty(inverse_TK.shape, device=x_TD.device)
    if not rows:
        return dx, torch.zeros_like(w13), torch.zeros_like(w2), dweights
    descriptors = descriptors_for(x_TD, w13, w2)
    weights = weights_TK.contiguous()
    spreading = spread_for(descriptors, x_TD)
    if spreading:
        dout = spread(dout, inverse_TK)
    tiles, dact_rows = tiles_for("dx", x_TD), tiles_for("dact", x_TD).rows
    table = list_tiles(offsets, rows, dact_rows)
    kept = _activation_grad(dout, w2, hidden, order_S, offsets, table, weights, descriptors, spreading)
    dhidden, weighted, partial = kept
    dw2, dw13 = torch.empty_like(w2), torch.empty_like(w13)
    _weight_grad(dout, weighted, order_S, offsets, dw2, top_k, None if spreading else "left")
    del dout, weighted, kept
    rows_x = spread(x_TD, inverse_TK) if spreading else x_TD
    _weight_grad(dhidden, rows_x, order_S, offsets, dw13, top_k, None if spreading else "right")
    del rows_x
    dx_SD = torch.empty(rows, x_TD.shape[1], dtype=staging(x_TD), device=x_TD.device)
    table = table if tiles.rows == dact_rows else None
    rows_times(dhidden, w13, offsets, dx_SD, tiles, transposed=False, descriptors=descriptors, table=table)
    combine(dx_SD, inverse_TK, None, None, dx, partial, dweights)
    return dx, dw13, dw2, dweights
