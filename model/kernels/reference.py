"""The kernels' specification in plain torch, which every implementation must match; also in float64.

Nothing here is differentiable; gradients are separate functions, combined in :mod:`model.kernels.ops`. Sums
run in float32 (float64 for float64 inputs) and are rounded once, to the dtype of the result.

Shapes: T tokens, D hidden, E experts, K experts per token, I expert width, S = T · K assignments; assignment
t · K + k is token t's k-th expert. Sources: DeepSeek-V3 (arXiv 2412.19437, 2.1.2) for the router and its
losses, SonicMoE (arXiv 2512.14080) for the saved tensors and the weights' gradient.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-20  # keeps the division finite if all chosen scores underflow


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
    """(ids int16 [T, K], weights [T, K], scores [T, K], counts int32 [E]).

    Chosen are the ``top_k`` largest sigmoid(logit) + bias, in falling order, equal ones by rising index; NaN
    ranks last. With ``n_group`` > 1 only experts of the ``topk_group`` groups with the largest sum of their
    two best are candidates. A row of ``forced_TK`` is used unchanged, in its order, unless its first column
    is negative: it routes live. ``scores`` are the sigmoids at ``ids``, without bias; ``weights`` are these,
    divided by their sum if ``norm``, times ``scale``. ``counts`` is the number of assignments of each expert.
    """
    scores_TE = torch.sigmoid(logits_TE)
    biased = scores_TE + bias_E
    biased = biased.masked_fill(biased.isnan(), float("-inf"))
    if n_group > 1:
        biased = _within_best_groups(biased, n_group, topk_group)
    ids = _largest(biased, top_k)
    if forced_TK is not None:
        ids = torch.where(forced_TK[:, :1] >= 0, forced_TK.long(), ids)
    scores = scores_TE.gather(1, ids)
    counts = torch.bincount(ids.flatten(), minlength=logits_TE.shape[1]).to(torch.int32)
    return ids.to(torch.int16), _weigh(scores, norm, scale), scores, counts


def _largest(values: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest of the last axis, equal ones by rising index (unlike ``topk``)."""
    return values.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _within_best_groups(biased_TE: Tensor, n_group: int, topk_group: int) -> Tensor:
    """``biased_TE`` with -inf outside each token's best groups."""
    grouped = biased_TE.unflatten(-1, (n_group, -1))
    best = _largest(grouped.sort(dim=-1, descending=True).values[..., :2].sum(-1), topk_group)
    closed = torch.ones(grouped.shape[:-1], dtype=torch.bool, device=grouped.device).scatter_(-1, best, False)
    return grouped.masked_fill(closed[..., None], float("-inf")).flatten(-2)


def _weigh(scores: Tensor, norm: bool, scale: float) -> Tensor:
    return scores / (scores.sum(-1, keepdim=True) + TINY) * scale if norm else scores * scale


def route_bwd(dweights_TK: Tensor, scores_TK: Tensor, ids_TK: Tensor, experts: int, norm: bool, scale: float) -> Tensor:
    """Gradient [T, E] with respect to the logits: through the chosen scores only, never through the choice."""
    dscores = dweights_TK * scale
    if norm:
        total = scores_TK.sum(-1, keepdim=True) + TINY
        dscores = (dscores - (dscores * scores_TK).sum(-1, keepdim=True) / total) / total
    dlogits = dscores * scores_TK * (1 - scores_TK)
    out = torch.zeros(len(ids_TK), experts, dtype=dlogits.dtype, device=dlogits.device)
    return out.scatter_add_(1, ids_TK.long(), dlogits)  # a forced row may repeat an expert


def swiglu_fwd(gate_up_T2I: Tensor) -> Tensor:
    """silu(gate) · up [..., I]; gate is the first half of a row."""
    gate, up = gate_up_T2I.chunk(2, dim=-1)
    return F.silu(gate) * up


def swiglu_bwd(dout_TI: Tensor, gate_up_T2I: Tensor) -> Tensor:
    """Gradient [T, 2 I] of :func:`swiglu_fwd`."""
    gate, up = gate_up_T2I.chunk(2, dim=1)
    share = torch.sigmoid(gate)
    return torch.cat((dout_TI * up * share * (1 + gate * (1 - share)), dout_TI * gate * share), dim=1)


def token_logprobs_fwd(logits_MV: Tensor, targets_M: Tensor, heat: float) -> tuple[Tensor, Tensor, Tensor]:
    """(log-probs [M] of the targets, entropies [M], logsumexps [M]) of softmax(logits / heat)."""
    scaled = logits_MV.to(_acc(logits_MV.dtype)) / heat
    logprobs_MV = torch.log_softmax(scaled, dim=-1)
    entropies = -(logprobs_MV.exp() * logprobs_MV).sum(-1)
    return logprobs_MV.gather(1, targets_M[:, None]).squeeze(1), entropies, scaled.logsumexp(-1)


def token_logprobs_bwd(
    dlogprobs_M: Tensor, logits_MV: Tensor, targets_M: Tensor, sums_M: Tensor, heat: float
) -> Tensor:
    """Gradient [M, V] of the log-probs with respect to the logits, in their dtype."""
    share = (logits_MV.to(_acc(logits_MV.dtype)) / heat - sums_M[:, None]).exp()
    grad = (-share).scatter_add(1, targets_M[:, None], torch.ones_like(share[:, :1])) * (dlogprobs_M / heat)[:, None]
    return grad.to(logits_MV.dtype)


def dispatch(ids_TK: Tensor, counts_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(order int32 [S], inverse int32 [T, K], offsets int32 [E + 1]): assignments by expert, tokens rising.

    ``order[i]`` is the assignment at sorted place i, ``inverse`` the place of each assignment; expert e has
    the places ``offsets[e]`` to ``offsets[e + 1]``.
    """
    order = ids_TK.flatten().sort(stable=True).indices
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    offsets = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)]).to(torch.int32)
    return order.to(torch.int32), inverse.view_as(ids_TK).to(torch.int32), offsets


def _acc(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


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
    """(out [T, D], hidden [S, 2 I] in sorted order): Σ_k weight_k · W2 (silu(gate) · up) + base.

    ``hidden``, gate first, is saved for the backward pass in x's dtype; the output uses its unrounded value.
    """
    acc, top_k = _acc(x_TD.dtype), inverse_TK.shape[1]
    hidden = x_TD.new_empty(len(order_S), w13_E2ID.shape[1])
    y_SD = torch.empty(len(order_S), x_TD.shape[1], dtype=acc, device=x_TD.device)
    for expert, rows in _segments(offsets):
        h = x_TD[order_S[rows] // top_k].to(acc) @ w13_E2ID[expert].to(acc).T
        gate, up = h.chunk(2, dim=-1)
        hidden[rows] = h.to(x_TD.dtype)
        y_SD[rows] = (F.silu(gate) * up) @ w2_EDI[expert].to(acc).T
    out = (y_SD[inverse_TK] * weights_TK.to(acc)[..., None]).sum(1)
    return (out if base_TD is None else out + base_TD.to(acc)).to(x_TD.dtype), hidden


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
    """Gradients (dx [T, D], dw13 [E, 2 I, D], dw2 [E, D, I], dweights [T, K]); the base's gradient is ``dout``."""
    acc, top_k = _acc(x_TD.dtype), inverse_TK.shape[1]
    dw13, dw2 = torch.zeros_like(w13_E2ID), torch.zeros_like(w2_EDI)
    dx_SD = torch.empty(len(order_S), x_TD.shape[1], dtype=acc, device=x_TD.device)
    dweights_S = torch.empty(len(order_S), dtype=acc, device=x_TD.device)
    for expert, rows in _segments(offsets):
        tokens = order_S[rows] // top_k
        gate, up = hidden[rows].to(acc).chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        silu = gate * sigmoid
        dout = dout_TD[tokens].to(acc)
        da = dout @ w2_EDI[expert].to(acc)
        dweights_S[rows] = (da * silu * up).sum(-1)
        weight = weights_TK.flatten()[order_S[rows]].to(acc)[:, None]
        da = da * weight
        dh = torch.cat([da * up * (sigmoid + silu * (1 - sigmoid)), da * silu], dim=-1)
        dw2[expert] = (dout.T @ (silu * up * weight)).to(dw2.dtype)
        dw13[expert] = (dh.T @ x_TD[tokens].to(acc)).to(dw13.dtype)
        dx_SD[rows] = dh @ w13_E2ID[expert].to(acc)
    return dx_SD[inverse_TK].sum(1).to(x_TD.dtype), dw13, dw2, dweights_S[inverse_TK].to(weights_TK.dtype)


def _segments(offsets: Tensor) -> list[tuple[int, slice]]:
    """The experts with rows, each with its places in the sorted order."""
    ends = offsets.tolist()
    return [(e, slice(a, b)) for e, (a, b) in enumerate(pairwise(ends)) if b > a]
