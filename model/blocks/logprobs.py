"""The head of a language model, and log-probs of given tokens without holding tokens × vocabulary.

If tokens × vocabulary is large it is computed in chunks of tokens, in the forward pass and again in the
backward pass, so memory holds a few copies of one chunk. If it is small, autograd computes it at once.

Shapes: M tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.kernels import ops

CHUNK = 2**24  # elements of tokens × vocabulary held at a time: 64 MiB in float32
GPU_CHUNK = 2**31  # the same on a GPU, which holds logits once, in the model's dtype: 4 GiB in bfloat16


class Head(nn.Linear):
    """The output matrix [V, D]. All uses read it through this module, so ZeRO 3 gathers it once."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__(hidden, vocabulary, bias=False)

    def forward(
        self, input: Tensor, targets_M: Tensor | None = None, temperature: float = 1.0, chunk: int = CHUNK
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [..., V] of ``input`` [..., D]; with ``targets_M`` see :func:`token_logprobs`."""
        if targets_M is None:
            return super().forward(input)
        return token_logprobs(input, self.weight, targets_M, temperature, chunk)


def token_logprobs(
    hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, temperature: float = 1.0, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Log-probs [M] of ``targets_M`` and entropies [M] (detached), float32 or float64 like ``hidden_MD``.

    ``chunk``: above this many elements of tokens × vocabulary, compute in chunks of that size.
    """
    if hidden_MD.is_cuda and len(hidden_MD) * len(weight_VD) <= GPU_CHUNK:
        return ops.token_logprobs(F.linear(hidden_MD, weight_VD), targets_M, temperature)
    if hidden_MD.is_cuda:  # small chunks would underuse it
        chunk = GPU_CHUNK
    if len(hidden_MD) * len(weight_VD) > chunk:
        return _Chunked.apply(hidden_MD, weight_VD, targets_M, temperature, max(1, chunk // len(weight_VD)))
    logprobs_MV = torch.log_softmax(_logits(hidden_MD, weight_VD, temperature), dim=-1)
    return logprobs_MV.gather(1, targets_M[:, None]).squeeze(1), _entropy(logprobs_MV.detach())


def _logits(hidden_MD: Tensor, weight_VD: Tensor, temperature: float) -> Tensor:
    logits_MV = F.linear(hidden_MD, weight_VD)
    return (logits_MV if logits_MV.dtype == torch.float64 else logits_MV.float()) / temperature


def _entropy(logprobs_MV: Tensor) -> Tensor:
    return -(logprobs_MV.exp() * logprobs_MV).sum(-1)


class _Chunked(torch.autograd.Function):
    """:func:`token_logprobs`, ``rows`` tokens at a time; saves only its arguments."""

    @staticmethod
    def forward(ctx, hidden_MD, weight_VD, targets_M, temperature, rows):
        ctx.save_for_backward(hidden_MD, weight_VD, targets_M)
        ctx.temperature, ctx.rows = temperature, rows
        found, entropies = [], []
        for hidden, targets in zip(hidden_MD.split(rows), targets_M.split(rows), strict=True):
            logprobs = torch.log_softmax(_logits(hidden, weight_VD, temperature), dim=-1)
            found.append(logprobs.gather(1, targets[:, None]).squeeze(1))
            entropies.append(_entropy(logprobs))
        entropy_M = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy_M)
        return torch.cat(found), entropy_M

    @staticmethod
    def backward(ctx, grad_M, _):
        hidden_MD, weight_VD, targets_M = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        wide = torch.float64 if weight_VD.dtype == torch.float64 else torch.float32  # sums over chunks
        grad_weight = torch.zeros_like(weight_VD, dtype=wide) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden_MD), ctx.rows):
            part = slice(start, start + ctx.rows)
            hidden, targets = hidden_MD[part], targets_M[part]
            scale = (grad_M[part] / ctx.temperature)[:, None]
            grad = torch.softmax(_logits(hidden, weight_VD, ctx.temperature), dim=-1).mul_(-scale)
            grad.scatter_add_(1, targets[:, None], scale.to(grad.dtype))
            grad = grad.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad, weight_VD, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += grad.T @ hidden
        return grad_hidden, grad_weight if grad_weight is None else grad_weight.to(weight_VD.dtype), None, None, None
