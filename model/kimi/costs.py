"""Costs of the family's policies. No torch."""

from __future__ import annotations

from model.costs import Costs
from model.kimi.config import ModelConfig


def costs(config: ModelConfig) -> Costs:
    """Of the language model, without tower and projector."""
    c, hidden = config, config.hidden_size
    head = c.qk_head_dim * c.num_attention_heads
    query = hidden * head if c.q_lora_rank is None else c.q_lora_rank * (hidden + 1 + head)
    keys = hidden * (c.kv_lora_rank + c.qk_rope_head_dim) + c.kv_lora_rank
    up = c.kv_lora_rank * c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim)
    attention = query + keys + up + c.num_attention_heads * c.v_head_dim * hidden
    expert = 3 * hidden * c.moe_intermediate_size
    dense = min(c.first_k_dense_replace, c.num_hidden_layers) * 3 * hidden * c.intermediate_size
    routed = c.num_moe_layers * c.n_routed_experts * expert
    shared = c.num_moe_layers * (c.n_shared_experts * expert + c.n_routed_experts * hidden)
    embedding = c.vocab_size * hidden
    total = 2 * embedding + hidden + c.num_hidden_layers * (attention + 2 * hidden) + dense + shared + routed
    unused = routed - routed * c.num_experts_per_tok // c.n_routed_experts
    heads = c.num_attention_heads * (c.qk_head_dim + c.v_head_dim)
    wide = c.num_experts_per_tok * (2 * hidden + 3 * c.moe_intermediate_size)  # row in and out, gate, up, act
    wide += 3 * c.moe_intermediate_size * c.n_shared_experts
    return Costs(
        total=total,
        routed=routed,
        embedding=embedding,
        active=total - unused - embedding,
        layers=c.num_hidden_layers,
        hidden=hidden,
        vocabulary=c.vocab_size,
        heads=heads,
        inside=2 * heads + max(wide if c.num_moe_layers else 0, 3 * c.intermediate_size),
        cache=2 * c.num_hidden_layers * (c.kv_lora_rank + c.qk_rope_head_dim),
        routed_layers=c.num_moe_layers,
        experts=c.n_routed_experts if c.num_moe_layers else 1,
        chosen=c.num_experts_per_tok,
    )
