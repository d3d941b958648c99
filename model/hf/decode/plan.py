"""Which shapes the native decoder serves, and what it needs to know of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from model.hf.build import own_config

if TYPE_CHECKING:
    import torch

    from model.hf.shape import HfShape

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral")
ROPES = ("default", "linear", "llama3", "yarn")  # those whose angles do not depend on the length of what is fed


@dataclass(frozen=True)
class Plan:
    """A shape as ``gqa.cpp`` wants it. ValueError with the reason where it cannot serve it."""

    shape: HfShape

    def __post_init__(self) -> None:
        if reason := self._reason():
            raise ValueError(f"the native decoder does not serve model_type={self.config.model_type!r}: {reason}")

    @cached_property
    def config(self) -> Any:
        """transformers' own configuration."""
        return own_config(self.shape.transformers)

    @property
    def head_dim(self) -> int:
        """Elements of a head."""
        return getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads

    @property
    def experts(self) -> tuple[int, int, int, bool]:
        """(number, chosen of them, their width, whether the weights of those chosen are made to sum to 1)."""
        c = self.config
        if c.model_type == "mixtral":
            return c.num_local_experts, c.num_experts_per_tok, c.intermediate_size, True
        if c.model_type == "qwen3_moe":
            return c.num_experts, c.num_experts_per_tok, c.moe_intermediate_size, c.norm_topk_prob
        return 0, 0, 0, False

    @property
    def sparse(self) -> list[bool]:
        """Of each layer: whether it has experts."""
        c = self.config
        if c.model_type == "qwen3_moe":
            step, dense = c.decoder_sparse_step, c.mlp_only_layers
            return [i not in dense and c.num_experts > 0 and (i + 1) % step == 0 for i in range(c.num_hidden_layers)]
        return [c.model_type == "mixtral"] * c.num_hidden_layers

    @property
    def windows(self) -> list[int]:
        """Of each layer: how many positions a token sees, itself among them; 0: all."""
        c = self.config
        window = getattr(c, "sliding_window", None) or 0
        kinds = getattr(c, "layer_types", None) if c.model_type in ("qwen2", "qwen3") else None
        if kinds is None:
            return [window] * c.num_hidden_layers
        return [window if kind == "sliding_attention" else 0 for kind in kinds]

    def rotary(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [positions, head_dim / 2] in the shape's dtype."""
        import torch
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        rope = self.config.rope_parameters
        if rope["rope_type"] == "default":
            exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float) / self.head_dim
            frequencies, factor = 1.0 / (rope["rope_theta"] ** exponents), 1.0
        else:
            frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](self.config, torch.device("cpu"))
        angles = torch.arange(self.shape.max_position_embeddings).float()[:, None] * frequencies
        dtype = getattr(torch, self.shape.dtype)
        return (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)

    def _reason(self) -> str | None:
        c = self.config
        if c.model_type not in FAMILIES:
            return f"it serves {', '.join(FAMILIES)}"
        rope = c.rope_parameters
        if rope.get("rope_type") not in ROPES or rope.get("partial_rotary_factor", 1.0) != 1.0:
            return f"rope_parameters={rope}; it rotates whole heads, by {', '.join(ROPES)}"
        if c.hidden_act != "silu":
            return f"hidden_act={c.hidden_act}; it knows silu"
        sizes = (c.hidden_size, c.intermediate_size, self.head_dim, self.experts[2])
        if any(size % 2 for size in sizes):
            return f"sizes {sizes}; it wants even ones"
        return None


def supported(shape: HfShape) -> bool:
    """Whether the native decoder serves ``shape``."""
    try:
        Plan(shape)
    except ValueError:
        return False
    return True
