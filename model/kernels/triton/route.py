"""The router on a GPU: sigmoid, exact top-k, weights and histogram in one pass, and its gradient.

A program is one warp (choose.py has the selection). Counts are integers, so their order does not matter:
programs add to many copies, which a second kernel sums. If all tokens of a program replay, the logits are
read only at the replayed experts.

Shapes: T tokens, E experts, K experts per token. Semantics: :mod:`model.kernels.reference`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton.choose import choose, choose_in_groups
from model.kernels.triton.common import power_of_two, programs

_TINY = tl.constexpr(1e-20)
ROWS = 4  # tokens of a program (one warp) at a time; half as many for long rows, to save registers
PER_PROCESSOR = 64  # programs per processor: the tokens of a warp wait for each other
MANY, COUNTS = 1024, 16384  # from MANY tokens on, COUNTS counters in all, so that programs do not wait for one


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
    K: tl.constexpr,
    K_PAD: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECES: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUPS_PAD: tl.constexpr,
    WIDTH: tl.constexpr,
    OPEN: tl.constexpr,
    COPIES: tl.constexpr,
    NORM: tl.constexpr,
    FORCED: tl.constexpr,
):
    slot = tl.arange(0, K_PAD)[None, :]
    for start in range(tl.program_id(0) * ROWS, tokens, tl.num_programs(0) * ROWS):
        token = start + tl.arange(0, ROWS)
        at = token[:, None] * K + slot
        real = (token < tokens)[:, None] & (slot < K)
        if FORCED:
            ids = tl.load(forced + at, mask=real, other=0).to(tl.int32)
            live = tl.load(forced + token * K, mask=token < tokens, other=0) < 0
            if tl.max(live.to(tl.int32), axis=0) > 0:
                if PIECES > 0:
                    chosen = choose(logits, bias, token, tokens, ROWS, E, K, K_PAD, COLUMNS, PIECES)
                else:
                    chosen = choose_in_groups(
                        logits, bias, token, tokens, ROWS, E, K, K_PAD, GROUPS, GROUPS_PAD, WIDTH, OPEN
                    )  # fmt: skip
                ids = tl.where(live[:, None], chosen, ids)
            ids = tl.minimum(tl.maximum(ids, 0), E - 1)  # ids out of range must not be read
        elif PIECES > 0:
            ids = choose(logits, bias, token, tokens, ROWS, E, K, K_PAD, COLUMNS, PIECES)
        else:
            ids = choose_in_groups(logits, bias, token, tokens, ROWS, E, K, K_PAD, GROUPS, GROUPS_PAD, WIDTH, OPEN)
        score = tl.sigmoid(tl.load(logits + token.to(tl.int64)[:, None] * E + ids, mask=real, other=0.0))
        score = tl.where(real, score, 0.0)
        weight = score
        if NORM:
            weight = tl.div_rn(score, (tl.sum(score, axis=1) + _TINY)[:, None] + tl.zeros_like(score))
        tl.store(ids_out + at, ids.to(tl.int16), mask=real)
        tl.store(scores_out + at, score, mask=real)
        tl.store(weights_out + at, weight * scale, mask=real)
        own = counts + (tl.program_id(0) % COPIES) * E  # integer sums: the order does not matter
        tl.atomic_add(own + ids, 1, mask=real, sem="relaxed")


@triton.jit
def _total(counts, total, E: tl.constexpr, COPIES: tl.constexpr, COLUMNS: tl.constexpr):
    expert = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    each = tl.load(
        counts + tl.arange(0, COPIES)[:, None] * E + expert[None, :], mask=(expert < E)[None, :], other=0
    )  # fmt: skip
    tl.store(total + expert, tl.sum(each, axis=0), mask=expert < E)


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
    K_PAD: tl.constexpr,
    NORM: tl.constexpr,
):
    """Zeros in the whole row, then the slots: an expert named twice gets the same sum from both."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    expert, slot = tl.arange(0, E_PAD)[None, :], tl.arange(0, K_PAD)[None, :]
    row = dlogits + token.to(tl.int64)[:, None] * E
    tl.store(row + expert, tl.zeros([ROWS, E_PAD], tl.float32), mask=(token < tokens)[:, None] & (expert < E))
    real = (token < tokens)[:, None] & (slot < K)
    at = token[:, None] * K + slot
    score = tl.load(scores + at, mask=real, other=0.0)
    grad = tl.load(dweights + at, mask=real, other=0.0)
    if NORM:
        total = tl.sum(score, axis=1) + _TINY
        grad = (grad - (tl.sum(score * grad, axis=1) / total)[:, None]) / total[:, None]
    grad = grad * scale * score * (1 - score)
    chosen = tl.load(ids + at, mask=real, other=-1).to(tl.int32)
    other = token[:, None, None] * K + slot[:, None, :]
    others = tl.load(ids + other, mask=((token < tokens)[:, None] & (slot < K))[:, None, :], other=-1).to(tl.int32)
    grads = tl.trans(grad[:, :, None] + tl.zeros([ROWS, K_PAD, K_PAD], tl.float32), 0, 2, 1)
    summed = tl.sum(tl.where(chosen[:, :, None] == others, grads, 0.0), axis=2)
    tl.debug_barrier()  # after the zeros
    tl.store(row + chosen, summed, mask=real)


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

    Forced ids beyond the last expert are clamped: refusing them would synchronise with the device.
    """
    tokens, experts = logits_TE.shape
    ids = torch.empty(tokens, top_k, dtype=torch.int16, device=logits_TE.device)
    weights, scores = (torch.empty(tokens, top_k, device=logits_TE.device) for _ in range(2))
    copies = power_of_two(triton.cdiv(COUNTS, experts)) if tokens >= MANY else 1
    counts = torch.zeros(copies, experts, dtype=torch.int32, device=logits_TE.device)
    if tokens:
        constants = route_constants(experts, top_k, n_group, topk_group) | {"COPIES": copies}
        _forward[(min(triton.cdiv(tokens, constants["ROWS"]), programs(logits_TE, PER_PROCESSOR)),)](
            logits_TE.float().contiguous(),
            bias_E.float().contiguous(),
            counts if forced_TK is None else forced_TK.contiguous(),
            ids,
            weights,
            scores,
            counts,
            float(scale),
            tokens,
            **constants,
            NORM=norm,
            FORCED=forced_TK is not None,
            num_warps=1,
            maxnreg=80 if constants["PIECES"] and forced_TK is None else None,  # more warps at a time; nothing spills
        )
    if copies == 1:
        return ids, weights, scores, counts[0]
    total = torch.empty_like(counts[0])
    _total[(triton.cdiv(experts, 32),)](counts, total, E=experts, COPIES=copies, COLUMNS=32, num_warps=4)
    return ids, weights, scores, total


def route_constants(experts: int, top_k: int, n_group: int, topk_group: int) -> dict[str, int]:
    """The forward kernel's compile-time sizes."""
    columns = min(128, power_of_two(experts))
    pieces = triton.cdiv(experts, columns)
    return {
        "ROWS": ROWS if experts <= 64 else ROWS // 2,
        "E": experts,
        "K": top_k,
        "K_PAD": power_of_two(top_k),
        "COLUMNS": columns,
        "PIECES": pieces if n_group == 1 and pieces <= 4 else 0,
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
        _backward[(triton.cdiv(tokens, ROWS),)](
            dweights_TK.contiguous(),
            scores_TK,
            ids_TK,
            dlogits,
            float(scale),
            tokens,
            ROWS=ROWS,
            E=experts,
            E_PAD=power_of_two(experts),
            K=top_k,
            K_PAD=power_of_two(top_k),
            NORM=norm,
            num_warps=1,
        )
    return dlogits
