"""What a policy of the family costs: parameters counted in the model itself, without memory for them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from model.costs import Costs
from model.hf.policy import HfPolicy, stacks
from model.hf.shape import HfShape


def costs(shape: HfShape) -> Costs:
    """See :class:`model.costs.Costs`. ValueError where the model cannot be a policy."""
    return _costs(shape.model_dump_json(include=set(HfShape.model_fields)))  # a run's section has more


@lru_cache(maxsize=16)
def _costs(text: str) -> Costs:
    shape = HfShape.model_validate_json(text)
    with torch.device("meta"):
        policy = HfPolicy(shape)
    config, layers = policy.causal.config, policy.layers()
    counted = {id(p): p.numel() for p in policy.parameters()}
    routed = sum(p.numel() for _, stack in stacks(policy) for p in stack.parameters())
    embedding = policy.causal.get_input_embeddings().weight.numel()
    total, said = sum(counted.values()), shape.routes
    unused = routed - routed * said.chosen // said.experts if said else 0
    query, cached = _heads(config)
    inside = max(_inside(layer, said.chosen if said else 0, config.hidden_size) for layer in layers)
    return Costs(
        total=total,
        routed=routed,
        embedding=embedding,
        tied=policy.tied,
        active=total - unused - (0 if policy.tied else embedding),
        layers=len(layers),
        hidden=config.hidden_size,
        vocabulary=shape.vocab_size,
        heads=query,
        inside=2 * query + inside,
        cache=2 * len(layers) * cached,
        routed_layers=said.layers if said else 0,
        experts=said.experts if said else 1,
        chosen=said.chosen if said else 0,
    )


def _heads(config: Any) -> tuple[int, int]:
    """(elements of a token's queries and result in a layer, elements that it leaves in the cache)."""
    heads = config.num_attention_heads
    if latent := getattr(config, "kv_lora_rank", None):
        rotated = config.qk_rope_head_dim
        return heads * (config.qk_nope_head_dim + rotated + config.v_head_dim), latent + rotated
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * heads * width, 2 * (getattr(config, "num_key_value_heads", None) or heads) * width


def _inside(layer: nn.Module, chosen: int, hidden: int) -> int:
    """Elements that a layer's feed-forward part holds of a token: what its linear layers and its experts give out."""
    linear = [m.out_features for name, m in layer.named_modules() if type(m) is nn.Linear and "attn" not in name]
    down = [stack.down_proj for _, stack in stacks(layer)]
    rows = [2 * hidden + 3 * p.numel() // (len(p) * hidden) for p in down]  # in and out; gate, up and their product
    return sum(linear) + chosen * sum(rows)
