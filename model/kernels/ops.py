"""The kernels as torch operators ``parl::…``: autograd, fake kernels, one implementation per device.

Implementations are modules with the same plain functions: :mod:`model.kernels.reference` (the specification),
``cpu_ops`` (C++) and, on CUDA devices, Triton's. Shapes as in the reference.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.kernels import cpu_ops, reference


class Routing(NamedTuple):
    """A router's result: ``weights`` [T, K], ``ids`` int16 [T, K], ``counts`` int32 [E] of assignments.

    In the order that DeepSpeed's AutoEP expects.
    """

    weights: Tensor
    ids: Tensor
    counts: Tensor


class Plan(NamedTuple):
    """Assignments sorted by expert: ``order`` int32 [S], ``inverse`` int32 [T, K], ``offsets`` int32 [E + 1]."""

    order: Tensor
    inverse: Tensor
    offsets: Tensor


def implementation(tensor: Tensor) -> Any:
    """The implementation for ``tensor``'s device and dtype."""
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float32
    if tensor.is_cuda and dtype != torch.float64 and importlib.util.find_spec("triton"):
        return importlib.import_module("model.kernels.triton")  # imported lazily: the CPU needs no triton
    return cpu_ops if tensor.device.type == "cpu" and cpu_ops.usable(dtype) else reference


def _call(name: str, plain: Callable, function: type[torch.autograd.Function] | None, *arguments: Any) -> Any:
    """Call operator ``name``, or the plain function unless traced: the overhead equals a small decode."""
    if type(arguments[0]) not in (Tensor, nn.Parameter) or torch.compiler.is_compiling():
        return getattr(torch.ops.parl, name)(*arguments)
    if function is None or not torch.is_grad_enabled():
        return plain(*arguments)
    return function.apply(*arguments)


# ---------------------------------------------------------------- route


def route(
    logits_TE: Tensor,
    bias_E: Tensor,
    forced_TK: Tensor | None = None,
    *,
    top_k: int,
    n_group: int = 1,
    topk_group: int = 1,
    norm: bool = True,
    scale: float = 1.0,
) -> Routing:
    """Choose experts and weigh them, see :func:`model.kernels.reference.route_fwd`.

    Differentiable in the logits. ``forced_TK`` replays choices; a row of -1 routes live. ValueError (CPU
    only, where checking is cheap) for a row with some -1, or for experts that do not exist.
    """
    if forced_TK is not None:
        forced_TK = forced_TK.to(torch.int16)
    settings = top_k, n_group, topk_group, norm, scale
    weights, ids, _, counts = _call("route", _route, _Route, logits_TE, bias_E, forced_TK, *settings)
    return Routing(weights, ids, counts)


def _route(
    logits: Tensor,
    bias: Tensor,
    forced: Tensor | None,
    top_k: int,
    n_group: int,
    topk_group: int,
    norm: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if forced is not None and not forced.is_cuda:
        _check_forced(forced, logits.shape[1])
    run = implementation(logits).route_fwd
    ids, weights, scores, counts = run(logits, bias, forced, top_k, n_group, topk_group, norm, scale)
    return weights, ids, scores, counts  # floats first: torch.library.opcheck sums outputs in the first one's dtype


def _check_forced(forced: Tensor, experts: int) -> None:
    if forced.numel() == 0:
        return
    live = forced < 0
    if bool((live.any(1) != live.all(1)).any()) or int(forced.max()) >= experts:
        bad = ((live.any(1) != live.all(1)) | (forced >= experts).any(1)).nonzero()[0].item()
        raise ValueError(
            f"forced experts of token {int(bad)} are {forced[int(bad)].tolist()}: give ids below {experts}, or -1 in"
            " all columns for live routing"
        )


_route_op = torch.library.custom_op("parl::route", _route, mutates_args=())


@_route_op.register_fake
def _(logits, bias, forced, top_k, n_group, topk_group, norm, scale):
    tokens, experts = logits.shape
    weights = logits.new_empty(tokens, top_k)
    ids, counts = logits.new_empty(tokens, top_k, dtype=torch.int16), logits.new_empty(experts, dtype=torch.int32)
    return weights, ids, torch.empty_like(weights), counts


def _route_backward(dweights: Tensor, scores: Tensor, ids: Tensor, experts: int, norm: bool, scale: float) -> Tensor:
    return implementation(scores).route_bwd(dweights, scores, ids, experts, norm, scale)


_route_backward_op = torch.library.custom_op("parl::route_backward", _route_backward, mutates_args=())


@_route_backward_op.register_fake
def _(dweights, scores, ids, experts, norm, scale):
    return scores.new_empty(scores.shape[0], experts)


def _route_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, ids, scores, counts = output
    ctx.mark_non_differentiable(ids, scores, counts)
    ctx.set_materialize_grads(False)  # otherwise zeros as large as the outputs
    ctx.save_for_backward(scores, ids)
    ctx.settings = inputs[0].shape[1], inputs[6], inputs[7]


def _route_grad(ctx: Any, *grads: Any) -> tuple:
    if grads[0] is None:
        return (None,) * 8
    arguments = grads[0].contiguous(), *ctx.saved_tensors, *ctx.settings
    dlogits = _call("route_backward", _route_backward, None, *arguments)
    return dlogits, *(None,) * 7


torch.library.register_autograd("parl::route", _route_grad, setup_context=_route_setup)


class _Route(torch.autograd.Function):
    backward = staticmethod(_route_grad)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple:  # without setup_context, which binds a signature per call
        output = _route(*inputs)
        _route_setup(ctx, inputs, output)
        return output


# ---------------------------------------------------------------- log-probs


def token_logprobs(logits_MV: Tensor, targets_M: Tensor, heat: float = 1.0) -> tuple[Tensor, Tensor]:
    """(log-probs [M] of the targets, entropies [M]) of softmax(logits / heat), float32.

    On a CPU with torch's operators, on a GPU in one pass over the logits each way, see
    :func:`model.kernels.reference.token_logprobs_fwd`. The entropies have no gradient.
    """
    if logits_MV.is_cuda and logits_MV.dtype != torch.float64:
        logprobs, entropies, _ = torch.ops.parl.token_logprobs(logits_MV, targets_M, heat)
        return logprobs, entropies
    logprobs_MV = torch.log_softmax(logits_MV.float() / heat, dim=-1)
    entropies = -(logprobs_MV.detach().exp() * logprobs_MV.detach()).sum(-1)
    return logprobs_MV.gather(1, targets_M[:, None]).squeeze(1), entropies


@torch.library.custom_op("parl::token_logprobs", mutates_args=())
def _token_logprobs(logits: Tensor, targets: Tensor, heat: float) -> tuple[Tensor, Tensor, Tensor]:
    return implementation(logits).token_logprobs_fwd(logits, targets, heat)


@_token_logprobs.register_fake
def _(logits, targets, heat):
    one, two, three = (torch.empty_like(targets, dtype=torch.float32) for _ in range(3))
    return one, two, three


@torch.library.custom_op("parl::token_logprobs_backward", mutates_args=())
def _token_logprobs_backward(dlogprobs: Tensor, logits: Tensor, targets: Tensor, sums: Tensor, heat: float) -> Tensor:
    return implementation(logits).token_logprobs_bwd(dlogprobs, logits, targets, sums, heat)


@_token_logprobs_backward.register_fake
def _(dlogprobs, logits, targets, sums, heat):
    return torch.empty_like(logits)


def _logprobs_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:2], output[2])
    ctx.heat = inputs[2]


def _logprobs_grad(ctx: Any, *grads: Any) -> tuple:
    if grads[0] is None:
        return None, None, None
    return torch.ops.parl.token_logprobs_backward(grads[0], *ctx.saved_tensors, ctx.heat), None, None


torch.library.register_autograd("parl::token_logprobs", _logprobs_grad, setup_context=_logprobs_setup)


# ---------------------------------------------------------------- dense feed-forward part


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) · up, [..., 2 I] to [..., I]: on a CPU by torch's operators, on a GPU in one pass each way."""
    if gate_up.is_cuda and gate_up.dtype != torch.float64:
        rows = gate_up.flatten(0, -2).contiguous()
        return torch.ops.parl.swiglu(rows).unflatten(0, gate_up.shape[:-1])
    return reference.swiglu_fwd(gate_up)


@torch.library.custom_op("parl::swiglu", mutates_args=())
def _swiglu(gate_up: Tensor) -> Tensor:
    return implementation(gate_up).swiglu_fwd(gate_up)


@_swiglu.register_fake
def _(gate_up):
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@torch.library.custom_op("parl::swiglu_backward", mutates_args=())
def _swiglu_backward(dout: Tensor, gate_up: Tensor) -> Tensor:
    return implementation(gate_up).swiglu_bwd(dout, gate_up)


@_swiglu_backward.register_fake
def _(dout, gate_up):
    return torch.empty_like(gate_up)


torch.library.register_autograd(
    "parl::swiglu",
    lambda ctx, dout: torch.ops.parl.swiglu_backward(dout, *ctx.saved_tensors),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


# ---------------------------------------------------------------- dispatch


def dispatch(ids_TK: Tensor, counts_E: Tensor) -> Plan:
    """Sort assignments by expert, see :func:`model.kernels.reference.dispatch`."""
    return Plan(*_call("dispatch", _dispatch, None, ids_TK, counts_E))


def _dispatch(ids: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return implementation(ids).dispatch(ids, counts)


_dispatch_op = torch.library.custom_op("parl::dispatch", _dispatch, mutates_args=())


@_dispatch_op.register_fake
def _(ids, counts):
    inverse = ids.new_empty(ids.shape, dtype=torch.int32)
    return inverse.new_empty(ids.numel()), inverse, inverse.new_empty(counts.shape[0] + 1)


# ---------------------------------------------------------------- experts


def expert_mlp(
    x_TD: Tensor,
    w13_E2ID: Tensor,
    w2_EDI: Tensor,
    plan: Plan,
    weights_TK: Tensor,
    base_TD: Tensor | None = None,
) -> Tensor:
    """Σ_k weight_k · expert_k(x) + base, [T, D], see :func:`model.kernels.reference.expert_mlp_fwd`.

    Saved for the backward pass: the inputs, and hidden [S, 2 I]. ``x``, matrices and ``base`` share a dtype.
    """
    arguments = x_TD, w13_E2ID, w2_EDI, *plan, weights_TK, base_TD
    return _call("expert_mlp", _expert_mlp, _ExpertMlp, *arguments)[0]


DECODING = 64  # tokens; beyond, the calls' overhead no longer counts


def experts(
    x_TD: Tensor,
    w13_E2ID: Tensor,
    w2_EDI: Tensor,
    ids_TK: Tensor,
    weights_TK: Tensor,
    base_TD: Tensor | None = None,
    counts_E: Tensor | None = None,
) -> Tensor:
    """:func:`dispatch` and :func:`expert_mlp`; CPU decoding without gradients is one call, the same bits.

    ``counts_E`` comes from the router, or is computed here.
    """
    plain = type(x_TD) in (Tensor, nn.Parameter) and not torch.compiler.is_compiling() and not torch.is_grad_enabled()
    if plain and len(x_TD) <= DECODING and implementation(x_TD) is cpu_ops:
        return cpu_ops.experts(x_TD, w13_E2ID, w2_EDI, ids_TK, weights_TK, base_TD)
    if counts_E is None:
        flat = ids_TK.flatten().int()  # no bincount, which synchronises with the device
        counts_E = flat.new_zeros(len(w13_E2ID)).index_add_(0, flat, torch.ones_like(flat))
    return expert_mlp(x_TD, w13_E2ID, w2_EDI, dispatch(ids_TK, counts_E), weights_TK, base_TD)


def _expert_mlp(
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    order: Tensor,
    inverse: Tensor,
    offsets: Tensor,
    weights: Tensor,
    base: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return implementation(x).expert_mlp_fwd(x, w13, w2, order, inverse, offsets, weights, base)


_expert_mlp_op = torch.library.custom_op("parl::expert_mlp", _expert_mlp, mutates_args=())


@_expert_mlp_op.register_fake
def _(x, w13, w2, order, inverse, offsets, weights, base):
    return x.new_empty(x.shape), x.new_empty(order.shape[0], w13.shape[1])


def _expert_mlp_backward(
    dout: Tensor,
    x: Tensor,
    w13: Tensor,
    w2: Tensor,
    hidden: Tensor,
    order: Tensor,
    inverse: Tensor,
    offsets: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return implementation(x).expert_mlp_bwd(dout, x, w13, w2, hidden, order, inverse, offsets, weights)


_expert_mlp_backward_op = torch.library.custom_op("parl::expert_mlp_backward", _expert_mlp_backward, mutates_args=())


@_expert_mlp_backward_op.register_fake
def _(dout, x, w13, w2, hidden, order, inverse, offsets, weights):
    return x.new_empty(x.shape), w13.new_empty(w13.shape), w2.new_empty(w2.shape), weights.new_empty(weights.shape)


def _expert_setup(ctx: Any, inputs: tuple, output: tuple) -> None:
    x, w13, w2, order, inverse, offsets, weights, base = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, w13, w2, output[1], order, inverse, offsets, weights)
    ctx.based = base is not None


def _expert_grad(ctx: Any, *grads: Any) -> tuple:
    dout = grads[0]
    if dout is None:
        return (None,) * 8
    arguments = dout.contiguous(), *ctx.saved_tensors
    dx, dw13, dw2, dweights = _call("expert_mlp_backward", _expert_mlp_backward, None, *arguments)
    return dx, dw13, dw2, None, None, None, dweights, dout if ctx.based else None


torch.library.register_autograd("parl::expert_mlp", _expert_grad, setup_context=_expert_setup)


class _ExpertMlp(torch.autograd.Function):
    backward = staticmethod(_expert_grad)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple:
        output = _expert_mlp(*inputs)
        _expert_setup(ctx, inputs, output)
        return output
