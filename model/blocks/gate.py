"""A router's logits: a product with float32 sums whatever the dtype of its inputs.

Shapes: T tokens, D hidden, E experts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gate_logits(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """x Wᵀ [T, E] in float32.

    On a GPU bfloat16 and float16 inputs are multiplied directly: products of two such numbers are exact in
    float32. Elsewhere they are widened first, which gives the same sums.
    """
    narrow = x_TD.dtype == weight_ED.dtype and x_TD.dtype in (torch.bfloat16, torch.float16)
    if x_TD.is_cuda and narrow:
        return _Gate.apply(x_TD, weight_ED)
    return F.linear(x_TD.float(), weight_ED.float())


class _Gate(torch.autograd.Function):
    """The backward pass splits the gradient of the logits into two narrow terms, which keep 16 of its bits."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight_ED)
        return torch.mm(x_TD, weight_ED.t(), out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x_TD, weight_ED = ctx.saved_tensors
        high = grad_TE.to(x_TD.dtype)
        terms = torch.cat((high, (grad_TE - high).to(x_TD.dtype)), dim=1)  # [T, 2 E]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = terms @ torch.cat((weight_ED, weight_ED))
        if ctx.needs_input_grad[1]:
            sums = torch.mm(terms.t(), x_TD, out_dtype=torch.float32)
            grad_weight = sums.unflatten(0, (2, -1)).sum(0).to(weight_ED.dtype)
        return grad_x, grad_weight
