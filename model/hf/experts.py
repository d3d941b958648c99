"""Our fused experts as an experts implementation of transformers, named ``parl``; of use without the rest of parl::

    import model.hf.experts
    model.set_experts_implementation("parl")

It serves stacks of SwiGLU experts in transformers' usual layout (gate and up in one matrix, silu, no biases: Qwen3-MoE,
Mixtral, GLM4-MoE, DeepSeek-V3 and others); experts of another make are computed by transformers, as ``grouped_mm``.

Shapes: T tokens, D hidden, E experts, K experts a token, I expert width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, ExpertsInterface, _default_apply_gate

from model.hf.build import EXPERTS
from model.kernels import ops

_MULTIPLE = 8  # of the widths that the grouped products take


def fused(module: Any) -> bool:
    """Whether ``module`` is a stack of experts that our kernels compute."""
    other = ("is_transposed", "has_bias", "has_post_expert_norm", "_is_expert_parallel")  # some are new in 5.24
    plain = module.is_concatenated and module.has_gate and not any(getattr(module, name, False) for name in other)
    silu = isinstance(getattr(module, "act_fn", None), (nn.SiLU, SiLUActivation))
    return (
        plain
        and silu
        and type(module)._apply_gate is _default_apply_gate
        and all(width % _MULTIPLE == 0 for width in module.down_proj.shape[1:])
    )


def experts(module: Any, x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """Σ_k weight_k · expert_k(x) for the K experts of each token, [T, D]; wherever the experts are."""
    if not fused(module):
        return ALL_EXPERTS_FUNCTIONS["grouped_mm"](module, x_TD, ids_TK, weights_TK)
    stacks = module.gate_up_proj, module.down_proj

    def local(x_RD: Tensor, ids_RK: Tensor, weights_RK: Tensor) -> Tensor:
        return ops.experts(x_RD, *stacks, ids_RK, weights_RK)

    ids_TK, weights_TK = ids_TK.to(torch.int16), weights_TK.float()
    group = getattr(module, "group", None)  # ranks that share the stacks
    if group is not None:
        return group.forward(local, len(stacks[0]), x_TD, ids_TK, weights_TK)
    return local(x_TD, ids_TK, weights_TK)


ExpertsInterface.register(EXPERTS, experts)
