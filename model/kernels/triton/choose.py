"""The router's choice on a GPU: the exact top-k of a token's scores plus bias, within one warp.

A token's row stays in the warp's registers. It is cut into up to four stacked pieces whose columns are sorted
first: a round of selection looks only at the top of each column, and taking an expert moves its column up by
one. Scores are compared twice. First on a grid of 2^-21, as integers with the expert in their lowest bits: a
round is one integer reduction, for which Hopper has an instruction. Only if two of the best K + 1 share a
grid point (or lie beyond its ends) is the row chosen again with keys that compare as the floats do, lower
experts first among equals.

Shapes: T tokens, E experts, K experts per token. Semantics: :mod:`model.kernels.reference`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from model.kernels.triton.common import NUMPY, quick_sigmoid

_LEAST = tl.constexpr(-(2**31))


@triton.jit
def _key(x):
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _pop(key, column, COLUMNS: tl.constexpr):
    """(column of each row's largest key, the lowest among equals; the keys without it)."""
    best = tl.max(key, axis=1)
    index = tl.min(tl.where(key == best[:, None], column[None, :], COLUMNS), axis=1)
    return index, tl.where(column[None, :] == index[:, None], _LEAST, key)


@triton.jit
def _within_best_groups(
    biased, ROWS: tl.constexpr, GROUPS: tl.constexpr, GROUPS_PAD: tl.constexpr, WIDTH: tl.constexpr, OPEN: tl.constexpr
):
    """``biased`` [ROWS, GROUPS_PAD * WIDTH] with -inf outside each row's best ``OPEN`` groups."""
    grouped = tl.reshape(biased, [ROWS, GROUPS_PAD, WIDTH])
    member = tl.arange(0, WIDTH)[None, None, :]
    best = tl.max(grouped, axis=2)
    first = tl.min(tl.where(grouped == best[:, :, None], member, WIDTH), axis=2)
    second = tl.max(tl.where(member == first[:, :, None], float("-inf"), grouped), axis=2)
    group = tl.arange(0, GROUPS_PAD)
    key = tl.where(group[None, :] < GROUPS, _key(best + second), _LEAST)
    open_ = tl.zeros([ROWS, GROUPS_PAD], tl.int32)
    for _ in tl.static_range(OPEN):
        chosen, key = _pop(key, group, GROUPS_PAD)
        open_ = tl.where(group[None, :] == chosen[:, None], 1, open_)
    grouped = tl.where(open_[:, :, None] != 0, grouped, float("-inf"))
    return tl.reshape(grouped, [ROWS, GROUPS_PAD * WIDTH])


@triton.jit
def _piece(
    logits, bias, token, tokens, FIRST: tl.constexpr, ROWS: tl.constexpr, E: tl.constexpr, COLUMNS: tl.constexpr
):
    """(keys [ROWS, COLUMNS] of the experts from ``FIRST`` on, these experts)."""
    expert = FIRST + tl.arange(0, COLUMNS)
    if FIRST + COLUMNS <= E:
        row = tl.load(logits + token.to(tl.int64)[:, None] * E + expert[None, :], mask=(token < tokens)[:, None])
        biased = quick_sigmoid(row) + tl.load(bias + expert)[None, :]
        key = _key(tl.where(biased == biased, biased, float("-inf")))
    else:
        real = (token < tokens)[:, None] & (expert < E)[None, :]
        row = tl.load(logits + token.to(tl.int64)[:, None] * E + expert[None, :], mask=real)
        biased = quick_sigmoid(row) + tl.load(bias + expert, mask=expert < E)[None, :]
        key = tl.where((expert < E)[None, :], _key(tl.where(biased == biased, biased, float("-inf"))), _LEAST)
    return key, expert[None, :] + tl.zeros([ROWS, COLUMNS], tl.int32)


@triton.jit
def _ordered(key_a, at_a, key_b, at_b):
    """Both, larger key first; equal ones keep their order, and the first piece has the lower expert."""
    swap = key_b > key_a
    high, low = tl.where(swap, key_b, key_a), tl.where(swap, key_a, key_b)
    return high, tl.where(swap, at_b, at_a), low, tl.where(swap, at_a, at_b)


@triton.jit
def _on_a_grid(x):
    """float32 bits from 1 to below 2 that rise with ``x`` in steps of 2^-21, for x from -2 to 2, clamped."""
    if NUMPY:
        x = tl.where(x == x, tl.minimum(tl.maximum(x * 0.25 + 0.5, 0.0), 1.0), 0.0)
        return (x * 0.99999976158142 + 1.0).to(tl.int32, bitcast=True)
    return tl.inline_asm_elementwise(
        "{ .reg .f32 t; fma.rn.sat.f32 t, $1, 0f3E800000, 0f3F000000; fma.rn.f32 t, t, 0f3F7FFFFC, 0f3F800000;"
        " mov.b32 $0, t; }",
        "=r,f",
        [x],
        dtype=tl.int32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def _packed(logits, bias, token, tokens, FIRST: tl.constexpr, E: tl.constexpr, COLUMNS: tl.constexpr):
    """Biased scores on a grid, with 511 - expert in the lowest nine bits, int32 [ROWS, COLUMNS]."""
    expert = FIRST + tl.arange(0, COLUMNS)
    real = expert < E
    if FIRST + COLUMNS <= E:
        real = expert >= 0  # constant-folded
    row = tl.load(
        logits + token.to(tl.int64)[:, None] * E + expert[None, :], mask=real[None, :] & (token < tokens)[:, None]
    )
    key = _on_a_grid(quick_sigmoid(row) + tl.load(bias + expert, mask=real)[None, :])
    return tl.where(real[None, :], key * 512 + (511 - expert + _LEAST)[None, :], _LEAST)


@triton.jit
def _choose_quickly(
    logits,
    bias,
    token,
    tokens,
    ROWS: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """(the choices of :func:`_choose_slowly`, rows with a collision on the grid: these may be wrong)."""
    key0 = _packed(logits, bias, token, tokens, 0, E, COLUMNS)
    if PIECES > 1:
        key1 = _packed(logits, bias, token, tokens, COLUMNS, E, COLUMNS)
        key0, key1 = tl.maximum(key0, key1), tl.minimum(key0, key1)
    if PIECES > 2:
        key2 = _packed(logits, bias, token, tokens, 2 * COLUMNS, E, COLUMNS)
        key1, key2 = tl.maximum(key1, key2), tl.minimum(key1, key2)
        key0, key1 = tl.maximum(key0, key1), tl.minimum(key0, key1)
    if PIECES > 3:
        key3 = _packed(logits, bias, token, tokens, 3 * COLUMNS, E, COLUMNS)
        key2, key3 = tl.maximum(key2, key3), tl.minimum(key2, key3)
        key1, key2 = tl.maximum(key1, key2), tl.minimum(key1, key2)
        key0, key1 = tl.maximum(key0, key1), tl.minimum(key0, key1)
    slot = tl.arange(0, K_PAD)[None, :]
    ids = tl.zeros([ROWS, K_PAD], tl.int32)
    met = tl.zeros([ROWS], tl.int32)
    before = tl.max(key0, axis=1)
    for k in tl.static_range(K):
        ids = tl.where(slot == k, (511 - (before & 511))[:, None], ids)
        taken = key0 == before[:, None]
        key0 = tl.where(taken, key1 if PIECES > 1 else _LEAST, key0)
        if PIECES > 1:
            key1 = tl.where(taken, key2 if PIECES > 2 else _LEAST, key1)
        if PIECES > 2:
            key2 = tl.where(taken, key3 if PIECES > 3 else _LEAST, key2)
        if PIECES > 3:
            key3 = tl.where(taken, _LEAST, key3)
        best = tl.max(key0, axis=1)
        met = tl.where((best ^ before) < 512, 1, met)  # both on one grid point; best <= before, so not negative
        before = best
    return ids, met


@triton.jit
def _choose_slowly(
    logits,
    bias,
    token,
    tokens,
    ROWS: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Live choices int32 [ROWS, K_PAD] of the tokens ``token``, in falling order of biased score."""
    key0, at0 = _piece(logits, bias, token, tokens, 0, ROWS, E, COLUMNS)
    if PIECES > 1:
        key1, at1 = _piece(logits, bias, token, tokens, COLUMNS, ROWS, E, COLUMNS)
        key0, at0, key1, at1 = _ordered(key0, at0, key1, at1)
    if PIECES > 2:
        key2, at2 = _piece(logits, bias, token, tokens, 2 * COLUMNS, ROWS, E, COLUMNS)
        key1, at1, key2, at2 = _ordered(key1, at1, key2, at2)
        key0, at0, key1, at1 = _ordered(key0, at0, key1, at1)
    if PIECES > 3:
        key3, at3 = _piece(logits, bias, token, tokens, 3 * COLUMNS, ROWS, E, COLUMNS)
        key2, at2, key3, at3 = _ordered(key2, at2, key3, at3)
        key1, at1, key2, at2 = _ordered(key1, at1, key2, at2)
        key0, at0, key1, at1 = _ordered(key0, at0, key1, at1)
    slot = tl.arange(0, K_PAD)[None, :]
    ids = tl.zeros([ROWS, K_PAD], tl.int32)
    for k in tl.static_range(K):
        best = tl.max(key0, axis=1)
        index = tl.min(tl.where(key0 == best[:, None], at0, 4 * COLUMNS), axis=1)
        taken = at0 == index[:, None]
        ids = tl.where(slot == k, index[:, None], ids)
        key0 = tl.where(taken, key1 if PIECES > 1 else _LEAST, key0)
        if PIECES > 1:
            at0 = tl.where(taken, at1, at0)
            key1 = tl.where(taken, key2 if PIECES > 2 else _LEAST, key1)
        if PIECES > 2:
            at1 = tl.where(taken, at2, at1)
            key2 = tl.where(taken, key3 if PIECES > 3 else _LEAST, key2)
        if PIECES > 3:
            at2 = tl.where(taken, at3, at2)
            key3 = tl.where(taken, _LEAST, key3)
    return ids


@triton.jit
def choose(
    logits,
    bias,
    token,
    tokens,
    ROWS: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECES: tl.constexpr,
):
    """Live choices int32 [ROWS, K_PAD] of the tokens ``token``, in falling order of biased score."""
    ids, met = _choose_quickly(logits, bias, token, tokens, ROWS, E, K, K_PAD, COLUMNS, PIECES)
    if tl.max(met, axis=0) > 0:
        sure = _choose_slowly(logits, bias, token, tokens, ROWS, E, K, K_PAD, COLUMNS, PIECES)
        ids = tl.where(met[:, None] > 0, sure, ids)
    return ids


@triton.jit
def choose_in_groups(
    logits,
    bias,
    token,
    tokens,
    ROWS: tl.constexpr,
    E: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    OPEN: tl.constexpr,
):
    """Like :func:`choose`, among the experts of each token's best groups, or of more than four pieces."""
    COLUMNS: tl.constexpr = GROUPS_PAD * WIDTH
    column = tl.arange(0, COLUMNS)  # groups are padded one by one, so columns rise with the experts they stand for
    expert = column // WIDTH * (E // GROUPS) + column % WIDTH
    real = (column % WIDTH < E // GROUPS) & (column // WIDTH < GROUPS)
    at = token.to(tl.int64)[:, None] * E + expert[None, :]
    score = tl.sigmoid(tl.load(logits + at, mask=(token < tokens)[:, None] & real[None, :], other=0.0))
    biased = score + tl.load(bias + expert, mask=real, other=0.0)[None, :]
    biased = tl.where((biased == biased) & real[None, :], biased, float("-inf"))
    if GROUPS > 1:
        biased = _within_best_groups(biased, ROWS, GROUPS, GROUPS_PAD, WIDTH, OPEN)
    key = tl.where(real[None, :], _key(biased), _LEAST)
    slot = tl.arange(0, K_PAD)[None, :]
    ids = tl.zeros([ROWS, K_PAD], tl.int32)
    for k in tl.static_range(K):
        index, key = _pop(key, column, COLUMNS)
        ids = tl.where(slot == k, (index // WIDTH * (E // GROUPS) + index % WIDTH)[:, None], ids)
    return ids
