"""A start for attention heads that look a fixed number of positions back.

Nearly everything that a small policy must learn first is copying, and copying begins with knowing what stood one, two
or three positions before (the first half of an induction head). A small model spends most of its training to find those
heads; here the first layer begins with them, and is free to change them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.attention import LatentAttention

_LOGIT = 6.0  # of each frequency at the wanted distance: its neighbours get about 3 % of the weight each
_DIRECTION = 0  # query latent that carries the constant


@torch.no_grad()
def look_back(layers: list[LatentAttention], mean_D: Tensor, spread: float) -> None:
    """Let head h of the first of ``layers`` look h + 1 positions back, whatever token stands there.

    ``mean_D`` is what all embeddings share and ``spread`` what they do not: their common direction is a constant from
    which queries and the shared rotary keys get fixed vectors, the key's unrotated, head h's turned back by h + 1
    positions, so that their product is largest at that distance. The other layers get the constant key only: their
    heads find out themselves which distances matter.
    """
    c = layers[0].config
    rank = c.q_lora_rank
    assert rank is not None, "the constant travels in the query's latent"
    size = float(mean_D.norm())
    unit_D = mean_D / size
    constant = size / (size**2 / len(mean_D) + spread**2) ** 0.5  # the share of a normed embedding along unit_D
    amplitude = (_LOGIT * c.qk_head_dim**0.5) ** 0.5
    key_R = torch.zeros(c.qk_rope_head_dim)
    key_R[0::2] = amplitude / constant
    for layer in layers:
        layer.kv_a_proj_with_mqa.weight[c.kv_lora_rank :] = torch.outer(key_R, unit_D)
        rest = layer.q_a_proj.weight.std() * (len(mean_D) * (rank - 1)) ** 0.5
        layer.q_a_proj.weight[_DIRECTION] = unit_D
    carried = rank**0.5 * constant / (constant**2 + float(rest) ** 2) ** 0.5
    frequencies = c.rope_theta ** (-torch.arange(0, c.qk_rope_head_dim, 2) / c.qk_rope_head_dim)
    heads = layers[0].q_b_proj.weight.view(c.num_attention_heads, c.qk_head_dim, rank)
    for head in range(c.num_attention_heads):
        turn = frequencies * (head + 1)
        rotary = heads[head, c.qk_nope_head_dim :, _DIRECTION]
        rotary[0::2] = amplitude / carried * turn.cos()
        rotary[1::2] = -amplitude / carried * turn.sin()
