"""Rotary positions (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


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
