"""Rotary positions (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from model.kernels import ops


def frequencies(width: int, theta: float) -> Tensor:
    """Radians per position of each pair, float64 [width / 2]."""
    return theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)


def tables(frequencies: Tensor, positions: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, each float32 [positions, width / 2], computed in float64, times ``scale``."""
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)
    if scale != 1.0:
        return (angles.cos() * scale).float(), (angles.sin() * scale).float()
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool = True) -> Tensor:
    """Rotate pairs of the last dimension, (2i, 2i + 1) or else (i, i + R / 2), in the layout of ``x``.

    ``cos`` and ``sin``, in float32, broadcast against [..., R / 2].
    """
    if not interleave:
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1).to(x.dtype)
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2).to(x.dtype)


def rotate_tails(x_BTW: Tensor, width: int, cos_TR: Tensor, sin_TR: Tensor, interleave: bool) -> Tensor:
    """:func:`rotate` of the last R of each head's ``width`` on a GPU, in place: [B, T, heads · width].

    What wrote ``x_BTW`` must not need it for its gradient, which holds for a matrix product.
    """
    return _Tails.apply(x_BTW, width, cos_TR, sin_TR, interleave)


def _rotate_tails_(x_NHQ: Tensor, cos_PR: Tensor, sin_PR: Tensor, near: bool, back: bool) -> None:
    ops.implementation(x_NHQ).rotate_tails_(x_NHQ, cos_PR, sin_PR, near, back)


torch.library.custom_op("parl::rotate_tails_", _rotate_tails_, mutates_args=("x_NHQ",)).register_fake(lambda *_: None)


def _rotate(x_NHQ: Tensor, *rest: Any) -> None:
    """The operator where it is traced, else the kernel itself, which costs less to call."""
    traced = type(x_NHQ) is not Tensor or torch.compiler.is_compiling()
    (torch.ops.parl.rotate_tails_ if traced else _rotate_tails_)(x_NHQ, *rest)


class _Tails(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTW: Tensor, width: int, cos_TR: Tensor, sin_TR: Tensor, interleave: bool) -> Tensor:
        ctx.save_for_backward(cos_TR, sin_TR)
        ctx.width, ctx.interleave = width, interleave
        ctx.mark_dirty(x_BTW)
        _rotate(x_BTW.view(-1, x_BTW.shape[-1] // width, width), cos_TR, sin_TR, interleave, False)
        return x_BTW

    @staticmethod
    def backward(ctx: Any, grad_BTW: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_BTW.clone(memory_format=torch.contiguous_format)
        heads = grad.view(-1, grad.shape[-1] // ctx.width, ctx.width)
        cos, sin = ctx.saved_tensors
        _rotate(heads, cos, sin, ctx.interleave, True)
        return grad, None, None, None, None
