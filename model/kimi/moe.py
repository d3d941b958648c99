"""DeepSeek-V3's mixture of experts: sigmoid router with correction bias, SwiGLU experts, a shared expert.

Shapes: T tokens (rows and positions flattened), D hidden, E experts, K experts per token, I expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.blocks.expert_parallel import ExpertGroup
from model.blocks.gate import gate_logits
from model.blocks.mlp import SwiGLU
from model.blocks.recompute import recomputing
from model.kernels import ops
from model.kernels.ops import Routing
from model.kimi.config import ModelConfig
from model.kimi.int4 import QuantizedCopy


class Router(nn.Module):
    """noaux_tc routing: choose by sigmoid score + correction bias, weigh by the score alone.

    With ``n_group`` > 1 a token first chooses ``topk_group`` groups of neighbours, then experts in them.
    """

    e_score_correction_bias: Tensor
    load_E: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.register_buffer("e_score_correction_bias", torch.zeros(config.n_routed_experts))
        self.register_buffer("load_E", torch.zeros(config.n_routed_experts), persistent=False)  # since last balancing

    def forward(self, x_TD: Tensor, routes_TK: Tensor | None = None) -> Routing:
        """Weights [T, K] of the chosen experts, their ids int16 [T, K], and tokens per expert int32 [E].

        ``routes_TK`` replays recorded choices (a row of -1 = choose live); weights always come from the live
        scores, so the router keeps its gradient.
        """
        c = self.config
        routing = ops.route(
            gate_logits(x_TD, self.weight),
            self.e_score_correction_bias,
            routes_TK,
            top_k=c.num_experts_per_tok,
            n_group=c.n_group,
            topk_group=c.topk_group,
            norm=c.norm_topk_prob,
            scale=c.routed_scaling_factor,
        )
        if self.training and not recomputing():
            self.load_E += routing.counts
        return routing

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Auxiliary-loss-free balancing (DeepSeek-V3, 2.1.2): adjust the bias against the load and reset it."""
        self.e_score_correction_bias += rate * torch.sign(self.load_E.mean() - self.load_E)
        self.load_E.zero_()


class Experts(nn.Module):
    """E SwiGLU experts as stacked matrices [E, 2 I, D] and [E, D, I]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, width, hidden = config.n_routed_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.empty(count, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.empty(count, hidden, width))
        self.quantized = config.quantize_experts is not None
        self._copies = QuantizedCopy(), QuantizedCopy()
        self.group: ExpertGroup | None = None  # ranks that share the stacks; None: all experts are here

    def matrices(self) -> tuple[Tensor, Tensor]:
        """(gate and up, down) as used in computation: with ``quantize_experts`` their INT4 values.

        Quantised once per change of the parameters, for all forward passes until the next.
        """
        if not self.quantized:
            return self.gate_up_proj, self.down_proj
        return self._copies[0].of(self.gate_up_proj), self._copies[1].of(self.down_proj)

    def weights_changed(self) -> None:
        """Call this after the parameters were written through ``.data``, which autograd does not count."""
        for copy in self._copies:
            copy.forget()

    def forward(
        self,
        x_TD: Tensor,
        ids_TK: Tensor,
        weights_TK: Tensor,
        counts_E: Tensor | None = None,
        base_TD: Tensor | None = None,
    ) -> Tensor:
        """Σ_k weight_k · expert_k(x) for the K experts of each token, [T, D], + ``base_TD``, on all ranks.

        ``counts_E``: assignments per expert, from the router.
        """
        if self.group is not None:
            return self.group.forward(self.local, len(self.gate_up_proj), x_TD, ids_TK, weights_TK, base_TD)
        return self.local(x_TD, ids_TK, weights_TK, counts_E, base_TD)

    def local(
        self,
        x_TD: Tensor,
        ids_TK: Tensor,
        weights_TK: Tensor,
        counts_E: Tensor | None = None,
        base_TD: Tensor | None = None,
    ) -> Tensor:
        """:meth:`forward` with this rank's experts, numbered from 0."""
        return ops.experts(x_TD, *self.matrices(), ids_TK, weights_TK, base_TD, counts_E)


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
        weights_TK, ids_TK, counts_E = self.gate(x_TD, routes_TK)
        shared = None if self.shared_experts is None else self.shared_experts(x_TD)
        return self.experts(x_TD, ids_TK, weights_TK, counts_E, shared).view_as(x_BTD)
