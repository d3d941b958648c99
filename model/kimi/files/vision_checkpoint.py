"""Convert the published weights of Kimi K2.5's vision tower to and from our names and layout.

Published layers are ``encoder.blocks``, norms and linear layers count from 0, queries, keys and values are
one matrix. Published heads are rotated in neighbouring pairs (2i, 2i + 1), ours, as in transformers, in
halves (i, i + half): even rows of each head move to its first half, odd rows to its second.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.kimi.vision.config import VisionConfig

PREFIXES = ("vision_tower.", "mm_projector.")

# Published names, ours.
_BLOCK, _LAYER = "vision_tower.encoder.blocks.", "vision_tower.layers."
_IN_LAYER = {"norm0": "norm1", "norm1": "norm2", "mlp.fc0": "mlp.fc1", "mlp.fc1": "mlp.fc2", "wo": "attn.proj"}
_ELSEWHERE = {
    "vision_tower.patch_embed.pos_emb.weight": "vision_tower.patch_embed.pos_emb.position_embeddings",
    "vision_tower.encoder.final_layernorm.weight": "vision_tower.final_layernorm.weight",
    "vision_tower.encoder.final_layernorm.bias": "vision_tower.final_layernorm.bias",
    "mm_projector.proj.0.weight": "mm_projector.in_proj.weight",
    "mm_projector.proj.0.bias": "mm_projector.in_proj.bias",
    "mm_projector.proj.2.weight": "mm_projector.out_proj.weight",
    "mm_projector.proj.2.bias": "mm_projector.out_proj.bias",
}


def from_published(weights: Mapping[str, Tensor], config: VisionConfig) -> dict[str, Tensor]:
    """A state dict for ``VisionModel`` from published tensors, ignoring the language model's."""
    state: dict[str, Tensor] = {}
    for name in filter(lambda name: name.startswith(PREFIXES), weights):
        ours = _renamed(name, _BLOCK, _LAYER, _IN_LAYER, _ELSEWHERE)
        if ".wqkv." not in name:
            state[ours] = weights[name]
            continue
        if len(weights[name]) != 3 * config.hidden_size:
            raise ValueError(f"{name} has {len(weights[name])} rows: expected 3 x hidden_size={config.hidden_size}")
        query, key, value = weights[name].chunk(3)
        state[ours.replace(".wqkv.", ".attn.q_proj.")] = _halves(query, config.num_attention_heads)
        state[ours.replace(".wqkv.", ".attn.k_proj.")] = _halves(key, config.num_attention_heads)
        state[ours.replace(".wqkv.", ".attn.v_proj.")] = value.clone()
    if not state:
        raise ValueError(f"weights hold no name that begins with {' or '.join(PREFIXES)}: not the vision side's file")
    return state


def to_published(state: Mapping[str, Tensor], config: VisionConfig) -> dict[str, Tensor]:
    """A ``VisionModel``'s state dict in the published form, which inference engines read."""
    heads, weights = config.num_attention_heads, {}
    in_layer, elsewhere = ({ours: name for name, ours in table.items()} for table in (_IN_LAYER, _ELSEWHERE))
    for name, tensor in state.items():
        published = _renamed(name, _LAYER, _BLOCK, in_layer, elsewhere)
        if ".attn.q_proj." in name:
            key, value = (state[name.replace("q_proj", part)] for part in ("k_proj", "v_proj"))
            fused = torch.cat((_neighbours(tensor, heads), _neighbours(key, heads), value))
            weights[published.replace(".attn.q_proj.", ".wqkv.")] = fused
        elif ".attn.k_proj." not in name and ".attn.v_proj." not in name:
            weights[published] = tensor
    return weights


def _renamed(name: str, layer: str, new_layer: str, in_layer: Mapping[str, str], elsewhere: Mapping[str, str]) -> str:
    if not name.startswith(layer):
        return elsewhere.get(name, name)
    index, rest = name.removeprefix(layer).split(".", 1)
    part, kind = rest.rsplit(".", 1)
    return f"{new_layer}{index}.{in_layer.get(part, part)}.{kind}"


def _halves(rows: Tensor, heads: int) -> Tensor:
    """Rows [heads * width, ...] of heads rotated in neighbouring pairs, reordered for rotation in halves."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _neighbours(rows: Tensor, heads: int) -> Tensor:
    """The inverse of ``_halves``."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
