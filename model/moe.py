"""The mixture of experts of DeepSeek-V3: sigmoid router with a correction bias, SwiGLU experts, a shared expert.

Shapes: T tokens (rows and positions flattened), D hidden, E experts, K experts a token, I expert width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig
from model.int4 import fake_quant
from model.recompute import recomputing

if TYPE_CHECKING:
    from model.expert_parallel import ExpertGroup


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x); gate and up are one matrix [2 I, D], gate first."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden, 2 * width, bias=False)
        self.down_proj = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Router(nn.Module):
    """noaux_tc routing: choose by sigmoid score + correction bias, weigh by the score alone.

    With ``n_group`` > 1 a token first chooses ``topk_group`` groups of neighbouring experts, then experts within them.
    """

    e_score_correction_bias: Tensor
    load_E: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.register_buffer("load_E", torch.zeros(config.n_routed_experts), persistent=False)  # since last balancing

    def forward(self, x_TD: Tensor, routes_TK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Expert ids int64 [T, K] and their weights [T, K].

        ``routes_TK`` replays recorded choices (-1 = choose live); weights always come from the live scores, so that the
        router keeps its gradient.
        """
        c = self.config
        scores_TE = torch.sigmoid(F.linear(x_TD.float(), self.weight.float()))  # in float32 whatever the weights are
        biased = scores_TE.detach() + self.e_score_correction_bias
        if c.n_group > 1:
            biased = self._within_best_groups(biased)
        ids_TK = biased.topk(c.num_experts_per_tok, dim=-1).indices
        if routes_TK is not None:
            ids_TK = torch.where(routes_TK >= 0, routes_TK.long(), ids_TK)
        weights_TK = scores_TE.gather(1, ids_TK)
        if c.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
        if self.training and not recomputing():
            self.load_E += torch.bincount(ids_TK.flatten(), minlength=c.n_routed_experts)
        return ids_TK, weights_TK * c.routed_scaling_factor

    def _within_best_groups(self, biased_TE: Tensor) -> Tensor:
        """``biased_TE`` with -inf outside each token's ``topk_group`` best groups, by their two best experts' sum."""
        c = self.config
        grouped = biased_TE.unflatten(-1, (c.n_group, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(c.topk_group, dim=-1).indices
        chosen = torch.zeros(grouped.shape[:-1], dtype=torch.bool, device=grouped.device).scatter_(-1, best, True)
        return grouped.masked_fill(~chosen[..., None], float("-inf")).flatten(-2)

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Auxiliary-loss-free balancing (DeepSeek-V3, 2.1.2): nudge the bias against the load seen since last time."""
        self.e_score_correction_bias += rate * torch.sign(self.load_E.mean() - self.load_E)
        self.load_E.zero_()


class _Permute(torch.autograd.Function):
    """x[order] for a permutation; the gradient is a gather too, so it is deterministic and needs no scatter."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x[order]

    @staticmethod
    def backward(ctx, grad: Tensor):
        (inverse,) = ctx.saved_tensors
        return grad[inverse], None, None


class Experts(nn.Module):
    """E SwiGLU experts as stacked matrices [E, 2 I, D] and [E, D, I]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width))
        self.quantized = config.quantize_experts is not None
        self.group: ExpertGroup | None = None  # ranks that share the stacks; None: all experts are here

    def matrices(self) -> tuple[Tensor, Tensor]:
        """(gate and up, down) as they are computed with: under ``quantize_experts`` what INT4 makes of them."""
        stacked = self.gate_up_proj, self.down_proj
        return (fake_quant(stacked[0]), fake_quant(stacked[1])) if self.quantized else stacked

    def forward(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Σ_k weight_k · expert_k(x) for the K experts of each token, [T, D]; wherever the experts are."""
        if self.group is not None:
            return self.group.forward(self.local, self.gate_up_proj.shape[0], x_TD, ids_TK, weights_TK)
        return self.local(x_TD, ids_TK, weights_TK)

    def local(self, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """:meth:`forward` by the experts that this rank holds, numbered from 0."""
        tokens, top_k = ids_TK.shape
        flat = ids_TK.flatten()
        order = torch.argsort(flat, stable=True)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel())
        ends = torch.bincount(flat, minlength=self.gate_up_proj.shape[0]).cumsum(0).to(torch.int32)
        copies = x_TD[:, None].expand(-1, top_k, -1).reshape(tokens * top_k, -1)
        sorted_rows = _Permute.apply(copies, order, inverse)
        gate_up_proj, down_proj = self.matrices()
        gate, up = F.grouped_mm(sorted_rows, gate_up_proj.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        out = F.grouped_mm(F.silu(gate) * up, down_proj.transpose(1, 2), offs=ends)
        out_TKD = _Permute.apply(out, inverse, order).view(tokens, top_k, -1)
        return (out_TKD * weights_TK[..., None]).sum(1).to(x_TD.dtype)


class MixtureOfExperts(nn.Module):
    """Routed experts plus the shared one."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)
        self.shared_experts = (
            SwiGLU(config.hidden_size, config.moe_intermediate_size * config.n_shared_experts)
            if config.n_shared_experts
            else None
        )

    def forward(self, x_BTD: Tensor, routes_BTK: Tensor | None = None) -> Tensor:
        """[B, T, D] to [B, T, D]; ``routes_BTK`` replays choices as in :meth:`Router.forward`."""
        x_TD = x_BTD.flatten(0, 1)
        routes_TK = None if routes_BTK is None else routes_BTK.flatten(0, 1)
        ids_TK, weights_TK = self.gate(x_TD, routes_TK)
        out = self.experts(x_TD, ids_TK, weights_TK).view_as(x_BTD)
        return out if self.shared_experts is None else out + self.shared_experts(x_BTD)
