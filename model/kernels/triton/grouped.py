"""Grouped products on a GPU: rows sorted by expert times their expert's matrix, by persistent programs.

A table of row tiles, built on the device, lists (expert, first row) of every tile of one expert's rows; its
length is read on the device too, so nothing synchronises. Tiles of an expert's last rows are partly empty:
these rows repeat the last real row and are never stored.

Shapes: S sorted rows, E experts, N columns of the result, C the contraction.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from model.kernels.triton.common import narrow, place, power_of_two, product, programs
from model.kernels.triton.settings import Tiles, row_tiles


@triton.jit
def _list_tiles(offsets, table, E: tl.constexpr, E_PAD: tl.constexpr, BM: tl.constexpr, CHUNK: tl.constexpr):
    """Program e lists its expert's tiles from table[1 + 2 i] on; the last one writes their number."""
    mine = tl.program_id(0)
    expert = tl.arange(0, E_PAD)
    loads = tl.load(offsets + expert + 1, mask=expert < E, other=0) - tl.load(
        offsets + expert, mask=expert < E, other=0
    )
    tiles = (loads + (BM - 1)) // BM
    before = tl.sum(tl.where(expert < mine, tiles, 0), axis=0)
    count = tl.sum(tl.where(expert == mine, tiles, 0), axis=0)
    first = tl.load(offsets + mine)
    for start in range(0, count, CHUNK):
        tile = start + tl.arange(0, CHUNK)
        at = table + 1 + 2 * (before + tile)
        tl.store(at, mine + tl.zeros_like(tile), mask=tile < count)
        tl.store(at + 1, first + tile * BM, mask=tile < count)
    if mine == E - 1:
        tl.store(table, before + count)


def list_tiles(offsets: Tensor, assignments: int, rows: int) -> Tensor:
    """The table int32 [1 + 2 · tiles] for tiles of ``rows`` rows, see :func:`_list_tiles`."""
    experts = offsets.shape[0] - 1
    table = offsets.new_empty(1 + 2 * row_tiles(assignments, experts, rows))
    _list_tiles[(experts,)](offsets, table, E=experts, E_PAD=power_of_two(experts), BM=rows, CHUNK=32, num_warps=2)
    return table


@triton.jit
def load_tile(base, row, real, column, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ALL: tl.constexpr):
    """Rows ``row`` at ``BLOCK`` neighbouring columns of a row-major matrix of ``WIDTH`` columns; zeros beyond its last
    column and, unless ``ALL``, where ``real`` is not. Masks along the columns only where needed: they cost wide loads.
    """
    at = base + row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    if WIDTH % BLOCK == 0 and ALL:
        tile = tl.load(at)
    elif WIDTH % BLOCK == 0:
        tile = tl.load(at, mask=real[:, None], other=0.0)
    elif ALL:
        tile = tl.load(at, mask=(column < WIDTH)[None, :], other=0.0)
    else:
        tile = tl.load(at, mask=real[:, None] & (column < WIDTH)[None, :], other=0.0)
    return tile


@triton.jit
def _rows_kernel(
    rows_in,
    matrices,
    offsets,
    table,
    out,
    N: tl.constexpr,
    C: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    FLATTEN: tl.constexpr,
    BAND: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """out [S, N] = rows_in [S, C] times matrices[e], stored [N, C] if ``TRANSPOSED``, else [C, N]."""
    row_tiles = tl.load(table)
    column_tiles: tl.constexpr = (N + BN - 1) // BN
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0), flatten=FLATTEN):
        m, n = place(tile, row_tiles, column_tiles, BAND)
        expert, first = tl.load(table + 1 + 2 * m), tl.load(table + 2 + 2 * m)
        end = tl.load(offsets + expert + 1)
        row, column = first + tl.arange(0, BM), n * BN + tl.arange(0, BN)
        source, bounded = tl.minimum(row, end - 1), tl.minimum(column, N - 1)
        matrix = matrices
        if not DESCRIPTORS:
            matrix = matrices + expert.to(tl.int64) * (N * C)
        acc = tl.zeros([BM, BN], tl.float32)
        for start in range(0, C, BK):
            depth = start + tl.arange(0, BK)
            if DESCRIPTORS:
                a = rows_in.load([first, start])
                if TRANSPOSED:
                    b = matrices.load([expert * N + n * BN, start]).T
                else:
                    b = matrices.load([expert * C + start, n * BN])
            else:
                a = load_tile(rows_in, source, row, depth, C, BK, True)
                if TRANSPOSED:
                    b = tl.trans(load_tile(matrix, bounded, column, depth, C, BK, True))
                else:
                    b = load_tile(matrix, depth, depth < C, column, N, BN, C % BK == 0)
            acc = product(a, b, acc)
        at = out + row.to(tl.int64)[:, None] * N + column[None, :]
        tl.store(at, narrow(acc, out.dtype.element_ty), mask=(row < end)[:, None] & (column < N)[None, :])


def rows_times(
    rows_SC: Tensor,
    matrices: Tensor,
    offsets: Tensor,
    out_SN: Tensor,
    tiles: Tiles,
    *,
    transposed: bool,
    descriptors: bool,
    table: Tensor | None = None,
) -> Tensor:
    """Fill ``out_SN`` with each row times its expert's matrix, [E, N, C] if ``transposed``, else [E, C, N].

    With descriptors a tile of a [C, N] matrix may reach into the next expert's rows: then C must be a
    multiple of the tile's depth, or pointers are used. ``table``: an existing one for such tiles.
    """
    contraction, columns = rows_SC.shape[1], out_SN.shape[1]
    descriptors = descriptors and (transposed or contraction % tiles.depth == 0)
    given: tuple = rows_SC, matrices
    if descriptors:
        block = [tiles.columns, tiles.depth] if transposed else [tiles.depth, tiles.columns]
        flat = matrices.flatten(0, 1)
        given = (
            TensorDescriptor.from_tensor(rows_SC, [tiles.rows, tiles.depth]),
            TensorDescriptor.from_tensor(flat, block),
        )
    if table is None:
        table = list_tiles(offsets, len(rows_SC), tiles.rows)
    _rows_kernel[(programs(rows_SC),)](
        *given,
        offsets,
        table,
        out_SN,
        N=columns,
        C=contraction,
        TRANSPOSED=transposed,
        DESCRIPTORS=descriptors,
        FLATTEN=descriptors and tiles.flatten and out_SN.element_size() == 2,  # float32 leaves no shared memory for it
        BAND=tiles.band,
        **tiles.constants(),
    )
    return out_SN
