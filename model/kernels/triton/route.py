"""The router on a GPU: sigmoid, exact top-k, weights and histogram in one pass, and its gradient.

A warp holds a token's row. Scores become int32 keys that compare as the floats do, so the K rounds of selection are
integer reductions, which Hopper has an instruction for. Padding lies below every key. Where all tokens of a program
replay, the logits are read at the replayed experts only.

Shapes: T tokens, E experts, K experts a token. Semantics: :mod:`model.kernels.reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.common import power_of_two, programs

_LEAST = tl.constexpr(-(2**31))
_TINY = tl.constexpr(1e-20)
_TOKENS = 4  # of a program at a time, one a warp


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
def _choose(
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
    """Live choices int32 [ROWS, K_PAD] of the tokens ``token``, in falling order of biased score."""
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


@triton.jit(do_not_specialize=["tokens"])
def _forward(
    logits,
    bias,
    forced,
    ids_out,
    weights_out,
    scores_out,
    counts,
    scale,
    tokens,
    ROWS: tl.constexpr,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    OPEN: tl.constexpr,
    NORM: tl.constexpr,
    FORCED: tl.constexpr,
):
    slot = tl.arange(0, K_PAD)[None, :]
    seen = tl.zeros([E_PAD], tl.int32)
    for start in range(tl.program_id(0) * ROWS, tokens, tl.num_programs(0) * ROWS):
        token = start + tl.arange(0, ROWS)
        at = token[:, None] * K + slot
        real = (token < tokens)[:, None] & (slot < K)
        if FORCED:
            ids = tl.load(forced + at, mask=real, other=0).to(tl.int32)
            live = tl.load(forced + token * K, mask=token < tokens, other=0) < 0
            if tl.max(live.to(tl.int32), axis=0) > 0:
                chosen = _choose(
                    logits, bias, token, tokens, ROWS, E, K, K_PAD, GROUPS, GROUPS_PAD, WIDTH, OPEN
                )  # fmt: skip
                ids = tl.where(live[:, None], chosen, ids)
            ids = tl.minimum(tl.maximum(ids, 0), E - 1)  # what does not exist must not be read
        else:
            ids = _choose(logits, bias, token, tokens, ROWS, E, K, K_PAD, GROUPS, GROUPS_PAD, WIDTH, OPEN)
        score = tl.sigmoid(tl.load(logits + token.to(tl.int64)[:, None] * E + ids, mask=real, other=0.0))
        score = tl.where(real, score, 0.0)
        weight = score
        if NORM:
            weight = tl.div_rn(score, (tl.sum(score, axis=1) + _TINY)[:, None] + tl.zeros_like(score))
        tl.store(ids_out + at, ids.to(tl.int16), mask=real)
        tl.store(scores_out + at, score, mask=real)
        tl.store(weights_out + at, weight * scale, mask=real)
        flat = tl.reshape(tl.where(real, ids, 0), [ROWS * K_PAD])
        seen += tl.histogram(flat, E_PAD, mask=tl.reshape(real, [ROWS * K_PAD]))
    expert = tl.arange(0, E_PAD)
    tl.atomic_add(counts + expert, seen, mask=(expert < E) & (seen > 0), sem="relaxed")  # integers: order is nothing


@triton.jit(do_not_specialize=["tokens"])
def _backward(
    dweights,
    scores,
    ids,
    dlogits,
    scale,
    tokens,
    ROWS: tl.constexpr,
    E: tl.constexpr,
    E_PAD: tl.constexpr,
    K: tl.constexpr,
    NORM: tl.constexpr,
):
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    real = token < tokens
    expert = tl.arange(0, E_PAD)[None, :]
    total = tl.full([ROWS], _TINY, tl.float32)
    mean = tl.zeros([ROWS], tl.float32)
    if NORM:
        for k in tl.static_range(K):
            score = tl.load(scores + token * K + k, mask=real, other=0.0)
            total += score
            mean += score * tl.load(dweights + token * K + k, mask=real, other=0.0)
        mean = mean / total
    out = tl.zeros([ROWS, E_PAD], tl.float32)
    for k in tl.static_range(K):  # in the order of the slots, so that experts named twice add up the same way
        score = tl.load(scores + token * K + k, mask=real, other=0.0)
        grad = tl.load(dweights + token * K + k, mask=real, other=0.0)
        if NORM:
            grad = (grad - mean) / total
        grad = grad * scale * score * (1 - score)
        chosen = tl.load(ids + token * K + k, mask=real, other=-1).to(tl.int32)
        out += tl.where(expert == chosen[:, None], grad[:, None], 0.0)
    tl.store(dlogits + token.to(tl.int64)[:, None] * E + expert, out, mask=real[:, None] & (expert < E))


def route_fwd(
    logits_TE: Tensor,
    bias_E: Tensor,
    forced_TK: Tensor | None,
    top_k: int,
    n_group: int,
    topk_group: int,
    norm: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids int16 [T, K], weights [T, K], scores [T, K], counts int32 [E]), see the reference's ``route_fwd``.

    Forced ids beyond the last expert become the last one: to refuse them would wait for the device.
    """
    tokens, experts = logits_TE.shape
    ids = torch.empty(tokens, top_k, dtype=torch.int16, device=logits_TE.device)
    weights, scores = (torch.empty(tokens, top_k, device=logits_TE.device) for _ in range(2))
    counts = torch.zeros(experts, dtype=torch.int32, device=logits_TE.device)
    if tokens:
        grid = (min(triton.cdiv(tokens, _TOKENS), programs(logits_TE, 8)),)
        _forward[grid](
            logits_TE.float().contiguous(),
            bias_E.float().contiguous(),
            counts if forced_TK is None else forced_TK.contiguous(),
            ids,
            weights,
            scores,
            counts,
            float(scale),
            tokens,
            **route_constants(experts, top_k, n_group, topk_group),
            NORM=norm,
            FORCED=forced_TK is not None,
            num_warps=4,
        )
    return ids, weights, scores, counts


def route_constants(experts: int, top_k: int, n_group: int, topk_group: int) -> dict[str, int]:
    """The forward kernel's compile-time sizes."""
    return {
        "ROWS": _TOKENS,
        "E": experts,
        "E_PAD": power_of_two(experts),
        "K": top_k,
        "K_PAD": power_of_two(top_k),
        "GROUPS": n_group,
        "GROUPS_PAD": power_of_two(n_group),
        "WIDTH": power_of_two(experts // n_group),
        "OPEN": topk_group,
    }


def route_bwd(dweights_TK: Tensor, scores_TK: Tensor, ids_TK: Tensor, experts: int, norm: bool, scale: float) -> Tensor:
    """Gradient float32 [T, E] with respect to the logits, see the reference's ``route_bwd``."""
    tokens, top_k = ids_TK.shape
    dlogits = torch.empty(tokens, experts, device=scores_TK.device)
    if tokens:
        _backward[(triton.cdiv(tokens, _TOKENS),)](
            dweights_TK.contiguous(),
            scores_TK,
            ids_TK,
            dlogits,
            float(scale),
            tokens,
            ROWS=_TOKENS,
            E=experts,
            E_PAD=power_of_two(experts),
            K=top_k,
            NORM=norm,
            num_warps=4,
        )
    return dlogits
