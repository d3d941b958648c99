"""Multi-head latent attention (DeepSeek-V2/V3, as K2.5 configures it), the form used for training.

Shapes: B rows, T positions, D hidden, H heads, N/R/V widths of a head's part without position, rotary part and value,
C latent rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import ModelConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm with a gain (no bias)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x`` over the root of its mean square, times the gain."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, each [max_position_embeddings, R / 2], computed in float64."""
    dims = torch.arange(0, config.qk_rope_head_dim, 2, dtype=torch.float64) / config.qk_rope_head_dim
    angles = torch.outer(torch.arange(config.max_position_embeddings, dtype=torch.float64), config.rope_theta**-dims)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved pairs of the last dimension; ``cos`` and ``sin`` broadcast against [..., R / 2]."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


class LatentAttention(nn.Module):
    """Queries and keys-values through low-rank latents; all heads share one rotary key. Parameter names are HF's."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = self.config = config
        heads, hidden = c.num_attention_heads, c.hidden_size
        self.q_a_proj = nn.Linear(hidden, c.q_lora_rank, bias=False)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = nn.Linear(c.q_lora_rank, heads * c.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, c.kv_lora_rank + c.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = nn.Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * c.v_head_dim, hidden, bias=False)

    def forward(self, x_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        """Causal attention over each row; the tables hold the positions of T, [T, R / 2]."""
        c = self.config
        rows, length, _ = x_BTD.shape
        heads = c.num_attention_heads
        q_BTHQ = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD))).view(rows, length, heads, c.qk_head_dim)
        q_nope, q_rope = q_BTHQ.split((c.qk_nope_head_dim, c.qk_rope_head_dim), dim=-1)
        latent, k_rope = self.kv_a_proj_with_mqa(x_BTD).split((c.kv_lora_rank, c.qk_rope_head_dim), dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(rows, length, heads, -1)
        k_nope, value = kv.split((c.qk_nope_head_dim, c.v_head_dim), dim=-1)
        q_rope = rotate(q_rope, cos_TR[:, None], sin_TR[:, None])
        k_rope = rotate(k_rope, cos_TR, sin_TR)[:, :, None].expand(-1, -1, heads, -1)
        query = torch.cat((q_nope, q_rope), dim=-1).transpose(1, 2)
        key = torch.cat((k_nope, k_rope), dim=-1).transpose(1, 2)
        # equal widths let scaled_dot_product_attention take its fused CPU path
        padded = F.pad(value, (0, c.qk_head_dim - c.v_head_dim)) if c.v_head_dim < c.qk_head_dim else value
        out = F.scaled_dot_product_attention(query, key, padded.transpose(1, 2), is_causal=True)
        return self.o_proj(out[..., : c.v_head_dim].transpose(1, 2).reshape(rows, length, -1))
