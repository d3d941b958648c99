"""The vision side's weights as published with Kimi K2.5, under the names and in the layout of ``model.vision``.

The published names are older: layers are ``encoder.blocks``, norms and linear layers count from 0, queries, keys and
values are one matrix. And its heads are rotated in neighbouring pairs (dimensions 2i and 2i + 1), ours in halves (i and
i + half), as in transformers: even rows of each head move to its first half, odd rows to its second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from model.vision_config import VisionConfig

PREFIXES = ("vision_tower.", "mm_projector.")

_RENAMED = (
    (r"^vision_tower\.patch_embed\.pos_emb\.weight$", "vision_tower.patch_embed.pos_emb.position_embeddings"),
    (r"^vision_tower\.encoder\.", "vision_tower."),
    (r"^mm_projector\.proj\.0\.", "mm_projector.in_proj."),
    (r"^mm_projector\.proj\.2\.", "mm_projector.out_proj."),
    (r"\.norm1\.", ".norm2."),  # before the next one, which makes a new norm1
    (r"\.norm0\.", ".norm1."),
    (r"\.mlp\.fc1\.", ".mlp.fc2."),
    (r"\.mlp\.fc0\.", ".mlp.fc1."),
    (r"\.wo\.", ".attn.proj."),
    (r"\.blocks\.", ".layers."),
)


def from_published(weights: Mapping[str, Tensor], config: VisionConfig) -> dict[str, Tensor]:
    """A state dict for ``VisionModel`` from published tensors; names of the language model are left out."""
    state: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name.startswith(PREFIXES):
            state.update(_converted(name, tensor, config))
    if not state:
        raise ValueError(
            f"weights hold no name that begins with {' or '.join(PREFIXES)}: is this the vision side's file?"
        )
    return state


def _converted(name: str, tensor: Tensor, config: VisionConfig) -> Iterator[tuple[str, Tensor]]:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    if ".wqkv." not in name:
        yield name, tensor
        return
    if len(tensor) != 3 * config.hidden_size:
        raise ValueError(f"{name} has {len(tensor)} rows: expected 3 x hidden_size={config.hidden_size}")
    query, key, value = tensor.chunk(3)
    heads = config.num_attention_heads
    for part, rows in (("q", _halves(query, heads)), ("k", _halves(key, heads)), ("v", value)):
        yield name.replace(".wqkv.", f".attn.{part}_proj."), rows.contiguous()


def _halves(rows: Tensor, heads: int) -> Tensor:
    """Rows [heads * width, ...] of heads rotated in neighbouring pairs, reordered for rotation in halves."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
