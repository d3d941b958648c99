"""Feed-forward parts."""

from __future__ import annotations

from torch import Tensor, nn

from model.kernels import ops


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x); gate and up are one matrix [2 I, D], gate first."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden, 2 * width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        return self.down_proj(ops.swiglu(self.gate_up_proj(x)))
