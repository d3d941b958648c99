"""Multi-head latent attention (DeepSeek-V2/V3, as configured in K2.5), in the form for training.

Shapes: B rows, T positions, D hidden, H heads, N/R/V widths of a head's part without position, rotary part
and value, C latent rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import rotary
from model.blocks.attention import causal_attention, max_logits, runs
from model.blocks.norms import RMSNorm
from model.blocks.recompute import recomputing
from model.blocks.rotary import rotate, rotate_tails
from model.kimi.config import ModelConfig


def rope_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """cos and sin of every position, each [max_position_embeddings, R / 2], computed in float64."""
    turns = rotary.frequencies(config.qk_rope_head_dim, config.rope_theta)
    if config.rope_scaling is None:
        return rotary.tables(turns, config.max_position_embeddings)
    scale = config.rope_scaling.rotation_scale
    return rotary.tables(yarn_frequencies(turns, config), config.max_position_embeddings, scale)


def yarn_frequencies(frequencies: Tensor, config: ModelConfig) -> Tensor:
    """``frequencies`` [R / 2] after YaRN: fast pairs unchanged, slow ones over the factor, a ramp between."""
    yarn = config.rope_scaling
    assert yarn is not None
    width = config.qk_rope_head_dim

    def pair_of(turns: float) -> float:
        """Index of the pair that makes ``turns`` rotations within the pretrained context."""
        wavelength = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
        return width * math.log(wavelength) / (2 * math.log(config.rope_theta))

    low = max(math.floor(pair_of(yarn.beta_fast)), 0)
    high = min(math.ceil(pair_of(yarn.beta_slow)), width - 1)
    pairs = torch.arange(width // 2, dtype=torch.float64)
    slowed = ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)  # 0.001 as in DeepSeek's code
    return frequencies * (1 - slowed) + frequencies / yarn.factor * slowed


class LatentAttention(nn.Module):
    """Queries and keys-values through low-rank latents; heads share one rotary key. Hugging Face's names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        c = self.config = config
        heads, hidden = c.num_attention_heads, c.hidden_size
        if c.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * c.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, c.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.latent_eps)
            self.q_b_proj = nn.Linear(c.q_lora_rank, heads * c.qk_head_dim, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, c.kv_lora_rank + c.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.latent_eps)
        self.kv_b_proj = nn.Linear(c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * c.v_head_dim, hidden, bias=False)
        self.max_logit_H: Tensor | None = None  # largest logits of the forward passes since the last reset

    def query(self, x: Tensor) -> Tensor:
        """Queries of all heads before rotation, [..., D] to [..., H (N + R)]."""
        if self.config.q_lora_rank is None:
            return self.q_proj(x)
        return self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.config.num_attention_heads

    @torch.no_grad()
    def scale_logits(self, gamma_H: Tensor) -> None:
        """Multiply each head's attention logits by its ``gamma_H``, in the weights, as QK-clip does.

        For latent attention (Kimi K2, arXiv 2507.20534, 2.1): √γ on a head's queries and keys without
        position, γ on its rotary queries; the rotary key, which all heads share, and the values stay.
        """
        c = self.config
        gamma_H11 = gamma_H[:, None, None]
        query = (self.q_proj if c.q_lora_rank is None else self.q_b_proj).weight
        query_HQ = query.view(c.num_attention_heads, c.qk_head_dim, -1)
        query_HQ[:, : c.qk_nope_head_dim] *= gamma_H11.sqrt()
        query_HQ[:, c.qk_nope_head_dim :] *= gamma_H11
        key_value_HW = self.kv_b_proj.weight.view(c.num_attention_heads, c.qk_nope_head_dim + c.v_head_dim, -1)
        key_value_HW[:, : c.qk_nope_head_dim] *= gamma_H11.sqrt()

    def forward(
        self,
        x_BTD: Tensor,
        cos_TR: Tensor,
        sin_TR: Tensor,
        real_BT: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Causal attention over each row; the tables hold the positions of T, [T, R / 2].

        ``real_BT``: also record the heads' largest logits, of queries at these positions, in ``max_logit_H``.
        ``lengths``: of rows packed in a single B; None: every B is one row.
        """
        c = self.config
        rows, length, _ = x_BTD.shape
        heads = c.num_attention_heads
        lengths = lengths or [length] * rows
        latent, k_rope = self.kv_a_proj_with_mqa(x_BTD).split((c.kv_lora_rank, c.qk_rope_head_dim), dim=-1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(rows, length, heads, -1)
        k_nope, value = kv.split((c.qk_nope_head_dim, c.v_head_dim), dim=-1)
        k_rope = rotate(k_rope, cos_TR, sin_TR, c.rope_interleave)[:, :, None].expand(-1, -1, heads, -1)
        query = self._queries(x_BTD, cos_TR, sin_TR)
        key = torch.cat((k_nope, k_rope), dim=-1).flatten(0, 1)
        if real_BT is not None and not recomputing():
            self._collect(query.detach(), key.detach(), real_BT.flatten(), lengths)
        if not x_BTD.is_cuda and c.v_head_dim < c.qk_head_dim:
            # equal widths let scaled_dot_product_attention take its fused CPU path
            value = F.pad(value, (0, c.qk_head_dim - c.v_head_dim))
        scale = c.softmax_scale if c.rope_scaling else None
        out = causal_attention(query, key, value.flatten(0, 1), lengths, scale)
        return self.o_proj(out[..., : c.v_head_dim].reshape(rows, length, -1))

    def _queries(self, x_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        """Rotated queries [B T, H, N + R]."""
        c, query = self.config, self.query(x_BTD)
        if query.is_cuda and query.dtype != torch.float64:
            query = rotate_tails(query, c.qk_head_dim, cos_TR, sin_TR, c.rope_interleave)
            return query.view(-1, c.num_attention_heads, c.qk_head_dim)
        q_BTHQ = query.view(*x_BTD.shape[:2], c.num_attention_heads, c.qk_head_dim)
        q_nope, q_rope = q_BTHQ.split((c.qk_nope_head_dim, c.qk_rope_head_dim), dim=-1)
        q_rope = rotate(q_rope, cos_TR[:, None], sin_TR[:, None], c.rope_interleave)
        return torch.cat((q_nope, q_rope), dim=-1).flatten(0, 1)

    def _collect(self, query_THQ: Tensor, key_THQ: Tensor, real_T: Tensor, lengths: Sequence[int]) -> None:
        """Raise ``max_logit_H`` to the largest logits of these rows."""
        for query, key, real in zip(
            *(runs(x, lengths) for x in (query_THQ, key_THQ, real_T[:, None, None])), strict=True
        ):
            seen_H = max_logits(query, key, real[:, 0, :, 0], self.config.softmax_scale)
            self.max_logit_H = seen_H if self.max_logit_H is None else torch.maximum(self.max_logit_H, seen_H)
