"""CPU kernels: C++ (``cpu/moe.cpp``, ``cpu/attention.cpp``) through ctypes, float32 and bfloat16, with torch's threads.

Functions and shapes as in :mod:`model.kernels.reference`; :mod:`model.kernels.ops` has checked the arguments.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from model.kernels.native import load_library

DTYPES = (torch.float32, torch.bfloat16)


def usable(dtype: torch.dtype) -> bool:
    """Whether these kernels support ``dtype`` and could be built."""
    return dtype in DTYPES and load_library() is not None


def _library() -> ctypes.CDLL:
    library = load_library()
    assert library is not None, "usable() was not asked"
    return library


def _ints(*values: int) -> ctypes.Array:
    return (ctypes.c_int * len(values))(*values)


def _at(tensor: Tensor | None) -> ctypes.c_void_p | None:
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def _pointers(*tensors: Tensor | None) -> ctypes.Array:
    return (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))


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
    """(ids int16 [T, K], weights [T, K], scores [T, K], counts int32 [E])."""
    logits, bias = logits_TE.float().contiguous(), bias_E.float().contiguous()
    forced = None if forced_TK is None else forced_TK.to(torch.int16).contiguous()
    tokens, experts = logits.shape
    ids = torch.empty(tokens, top_k, dtype=torch.int16)
    weights, scores = torch.empty(tokens, top_k), torch.empty(tokens, top_k)
    counts = torch.empty(experts, dtype=torch.int32)
    ints = _ints(tokens, experts, top_k, n_group, topk_group, norm, _threads(tokens * experts))
    outputs = map(_at, (logits, bias, forced, ids, weights, scores, counts))
    _library().parl_route(ints, ctypes.c_float(scale), *outputs)
    return ids, weights, scores, counts


def _threads(work: int) -> int:
    """1 for work that takes less time than waking a thread."""
    return torch.get_num_threads() if work > 20_000 else 1


def route_bwd(dweights_TK: Tensor, scores_TK: Tensor, ids_TK: Tensor, experts: int, norm: bool, scale: float) -> Tensor:
    """Gradient [T, E] with respect to the logits."""
    tokens, top_k = ids_TK.shape
    out = torch.empty(tokens, experts)
    ints = _ints(tokens, experts, top_k, norm, _threads(tokens * experts))
    tensors = map(_at, (dweights_TK.float().contiguous(), scores_TK.contiguous(), ids_TK.contiguous(), out))
    _library().parl_route_backward(ints, ctypes.c_float(scale), *tensors)
    return out


def dispatch(ids_TK: Tensor, counts_E: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(order int32 [S], inverse int32 [T, K], offsets int32 [E + 1]); ValueError for an invalid expert id."""
    ids = ids_TK.to(torch.int16).contiguous()
    inverse = torch.empty(ids.shape, dtype=torch.int32)
    order, offsets = inverse.new_empty(ids.numel()), inverse.new_empty(len(counts_E) + 1)
    size = ctypes.c_long(ids.numel())
    if _library().parl_dispatch(size, len(counts_E), _at(ids), _at(order), _at(inverse), _at(offsets)):
        raise ValueError(f"expert ids from {int(ids.min())} to {int(ids.max())}: there are {len(counts_E)} experts")
    return order, inverse, offsets


def _shape(x: Tensor, w2: Tensor, inverse: Tensor) -> ctypes.Array:
    (tokens, hidden), (experts, _, width), top_k = x.shape, w2.shape, inverse.shape[1]
    threads = _threads(tokens * top_k * hidden * width // 50)
    return _ints(tokens, hidden, experts, width, top_k, threads, x.dtype == torch.bfloat16)


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
    """(out [T, D], hidden [S, 2 I])."""
    x, w13, w2, weights = x_TD.contiguous(), w13_E2ID.contiguous(), w2_EDI.contiguous(), weights_TK.float().contiguous()
    base = None if base_TD is None else base_TD.contiguous()
    size, width = len(order_S), w2.shape[2]
    hidden, out = x.new_empty(size, 2 * width), torch.empty_like(x)
    act, y = torch.empty(size, width), torch.empty(size, x.shape[1])
    plan, tensors = _pointers(order_S, inverse_TK, offsets), _pointers(x, w13, w2, base)
    ints = _shape(x, w2, inverse_TK)
    _library().parl_expert_mlp(ints, plan, _at(weights), tensors, _at(hidden), _at(act), _at(y), _at(out))
    return out, hidden


@cache
def _experts() -> Callable[..., int]:
    function = _library().parl_experts
    function.argtypes = [ctypes.c_int] * 7 + [ctypes.c_void_p] * 7  # plain ints need no wrapping
    return function


def experts(
    x_TD: Tensor, w13_E2ID: Tensor, w2_EDI: Tensor, ids_TK: Tensor, weights_TK: Tensor, base_TD: Tensor | None
) -> Tensor:
    """[T, D]: :func:`dispatch` and :func:`expert_mlp_fwd` in one call, the same bits, without gradients."""
    x, w13, w2 = x_TD.contiguous(), w13_E2ID.contiguous(), w2_EDI.contiguous()
    ids, weights = ids_TK.to(torch.int16).contiguous(), weights_TK.float().contiguous()
    base = None if base_TD is None else base_TD.contiguous()
    (tokens, top_k), (count, hidden, width) = ids.shape, w2.shape
    out = torch.empty_like(x)
    threads, half = _threads(tokens * top_k * hidden * width // 50), x.dtype == torch.bfloat16
    tensors = ids, weights, x, w13, w2, base, out
    pointers = [None if t is None else t.data_ptr() for t in tensors]
    if _experts()(tokens, hidden, count, width, top_k, threads, half, *pointers):
        raise ValueError(f"expert ids from {int(ids.min())} to {int(ids.max())}: there are {count} experts")
    return out


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
    """Gradients (dx [T, D], dw13 [E, 2 I, D], dw2 [E, D, I], dweights [T, K])."""
    dout, x, w13, w2 = (
        dout_TD.to(x_TD.dtype).contiguous(),
        x_TD.contiguous(),
        w13_E2ID.contiguous(),
        w2_EDI.contiguous(),
    )
    weights, size, width = weights_TK.float().contiguous(), len(order_S), w2.shape[2]
    dx, dw13, dw2, dweights = (
        torch.empty_like(x),
        torch.empty_like(w13),
        torch.empty_like(w2),
        torch.empty_like(weights),
    )
    room = torch.empty(size, 2 * width), torch.empty(size, width), torch.empty(size, x.shape[1])
    tensors, outputs = _pointers(dout, x, w13, w2, hidden), _pointers(dx, dw13, dw2)
    plan, ints = _pointers(order_S, inverse_TK, offsets), _shape(x, w2, inverse_TK)
    _library().parl_expert_mlp_backward(ints, plan, _at(weights), tensors, _pointers(*room), outputs, _at(dweights))
    return dx, dw13, dw2, dweights


# ---------------------------------------------------------------- attention


def attends(query: Tensor, value: Tensor) -> bool:
    """Whether :func:`attend` supports these: bfloat16 of even widths on the CPU, with kernels built."""
    even = query.shape[-1] % 2 == value.shape[-1] % 2 == 0
    return query.dtype == torch.bfloat16 and query.device.type == "cpu" and even and load_library() is not None


def _layout(query_UHQ: Tensor, value_UKV: Tensor, starts: Tensor) -> ctypes.Array:
    (tokens, heads, width), (_, key_heads, values) = query_UHQ.shape, value_UKV.shape
    return _ints(tokens, len(starts) - 1, heads, key_heads, width, values, torch.get_num_threads())


def attend_fwd(
    query_UHQ: Tensor, key_UKQ: Tensor, value_UKV: Tensor, starts: Tensor, own: Tensor, place_T: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(attention [U, H, V], logarithms of its denominators float32 [U, H]); inputs contiguous, layout int32."""
    out = query_UHQ.new_empty(*query_UHQ.shape[:2], value_UKV.shape[2])
    sums = torch.empty(query_UHQ.shape[:2])
    tensors = map(_at, (query_UHQ, key_UKQ, value_UKV, out, sums))
    layout = _layout(query_UHQ, value_UKV, starts), _pointers(starts, own, place_T)
    _library().parl_attend(*layout, ctypes.c_float(scale), *tensors)
    return out, sums


def attend_bwd(
    dout_UHV: Tensor,
    query_UHQ: Tensor,
    key_UKQ: Tensor,
    value_UKV: Tensor,
    out_UHV: Tensor,
    sums_UH: Tensor,
    starts: Tensor,
    own: Tensor,
    place_T: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to queries, keys and values."""
    dout = dout_UHV.contiguous()
    delta = (dout.float() * out_UHV.float()).sum(-1)
    heads, width = key_UKQ.shape[1], key_UKQ.shape[2] + value_UKV.shape[2]
    room = torch.zeros(len(place_T) * heads * width)
    grads = torch.empty_like(query_UHQ), torch.empty_like(key_UKQ), torch.empty_like(value_UKV)
    tensors = map(_at, (query_UHQ, key_UKQ, value_UKV, dout, sums_UH, delta, room, *grads))
    layout = _layout(query_UHQ, value_UKV, starts), _pointers(starts, own, place_T)
    _library().parl_attend_backward(*layout, ctypes.c_float(scale), *tensors)
    return grads
