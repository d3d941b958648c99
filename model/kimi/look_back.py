"""Initialise heads that copy: some look a fixed number of positions back, others match earlier occurrences.

Most of what a small policy must learn first is copying, which takes two layers: a head that tells each
position its previous token, and one that looks for a position with the same previous token (an induction
head, Olsson et al. 2022). A small model spends most of its training on finding them, if it does; here it
starts with them, and they are trained like all weights.

The residual stream is divided into six blocks of W dimensions, besides the direction that all embeddings
share. A token's code is its embedding's part in block 0. Head h of the first layer writes the code of the
token h + 1 positions back into block h + 1; the matching heads of the next layers write the code of their
match into block 5, where the output matrix reads it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.kimi.attention import LatentAttention

_HEADS = 4  # look-back heads, and matching heads per layer
_BLOCKS = _HEADS + 2
_NARROWEST = 8  # dimensions of a block, below which codes are too similar
_LOGIT = 6.0  # per frequency at the wanted distance: its neighbours get about 3 % of the weight each
_MATCH = 12.0  # per match: some hundred other positions together weigh about a tenth of it
_LOUDNESS = 3.0  # of the carried codes, relative to the embedding
_PREDICTED = 8.0  # of the token found by a matching head, if all agree
# For each matching head of each layer: pairs of (positions back from here, positions back from there) whose
# codes must be equal. The first layer matches the same token, the same last two tokens, and one or two tokens
# further; the second what is one and two tokens behind the same name, which shows whether a list goes on and
# with which number
_MATCHING = (
    (((0, 1),), ((1, 2),), ((0, 1), (1, 2)), ((1, 2), (2, 3))),
    (((2, 1),), ((2, 1), (3, 2)), ((3, 2),), ((3, 2), (4, 3))),
)


@torch.no_grad()
def look_back(layers: list[LatentAttention], mean_D: Tensor, spread: float) -> None:
    """Let head h of the first of ``layers`` look h + 1 positions back, whatever token is there.

    ``mean_D`` is what all embeddings share and ``spread`` what they do not. Their common direction is a
    constant that gives fixed vectors to queries and the shared rotary keys: the key's unrotated, head h's
    turned back by h + 1 positions, so that their product is largest at that distance. The other layers get
    the constant key only and learn their distances.
    """
    c = layers[0].config
    rank = c.q_lora_rank
    assert rank is not None, "the constant travels in the query's latent"
    size = float(mean_D.norm())
    unit_D = mean_D / size
    constant = size / (size**2 / len(mean_D) + spread**2) ** 0.5  # share of a normed embedding along unit_D
    amplitude = (_LOGIT * c.qk_head_dim**0.5) ** 0.5
    key_R = torch.zeros(c.qk_rope_head_dim)
    key_R[0::2] = amplitude / constant
    for layer in layers:
        layer.kv_a_proj_with_mqa.weight[c.kv_lora_rank :] = torch.outer(key_R, unit_D)
    layers[0].q_a_proj.weight[0] = unit_D
    rest = float(layers[0].q_a_proj.weight[1:].std()) * (len(mean_D) * (rank - 1)) ** 0.5
    carried = rank**0.5 * constant / (constant**2 + rest**2) ** 0.5
    frequencies = c.rope_theta ** (-torch.arange(0, c.qk_rope_head_dim, 2) / c.qk_rope_head_dim)
    heads = layers[0].q_b_proj.weight.view(c.num_attention_heads, c.qk_head_dim, rank)
    for head in range(c.num_attention_heads):
        turn = frequencies * (head + 1)
        rotary = heads[head, c.qk_nope_head_dim :, 0]
        rotary[0::2] = amplitude / carried * turn.cos()
        rotary[1::2] = -amplitude / carried * turn.sin()


@torch.no_grad()
def match(layers: list[LatentAttention], embedding_VD: Tensor, output: nn.Linear, mean_D: Tensor) -> None:
    """Let the first layer's heads carry codes, and those of the next layers match them.

    Does nothing if the shape is too small.
    """
    c = layers[0].config
    assert c.q_lora_rank is not None
    widths = (len(mean_D) - 1) // _BLOCKS, c.q_lora_rank // (_BLOCKS - 1), c.kv_lora_rank // (_BLOCKS - 2)
    width = min(*widths, c.v_head_dim, c.qk_nope_head_dim)
    if width < _NARROWEST or c.num_attention_heads < _HEADS:
        return
    basis, _ = torch.linalg.qr(torch.cat((mean_D[:, None], torch.randn(len(mean_D), len(mean_D) - 1)), 1))
    blocks = [basis[:, 1 + i * width : 1 + (i + 1) * width].T for i in range(_BLOCKS)]  # each [W, D], orthonormal
    embedding_VD -= embedding_VD @ blocks[-1].T @ blocks[-1]  # only matches are written there
    _carry(layers[0], blocks)
    for layer, heads in zip(layers[1:], _MATCHING, strict=False):
        _find(layer, blocks, heads)
    code_VW = (embedding_VD - mean_D) @ blocks[0].T
    output.weight += _PREDICTED / width * code_VW @ blocks[-1]


def _carry(layer: LatentAttention, blocks: list[Tensor]) -> None:
    """Head h writes the code of the token it attends to into block h + 1."""
    c, width = layer.config, len(blocks[0])
    latent = layer.kv_a_proj_with_mqa.weight[: c.kv_lora_rank]
    latent[:width] = blocks[0] * float(latent.std()) * len(blocks[0].T) ** 0.5
    up = layer.kv_b_proj.weight.view(c.num_attention_heads, -1, c.kv_lora_rank)[:, c.qk_nope_head_dim :]
    down = layer.o_proj.weight.view(-1, c.num_attention_heads, c.v_head_dim)
    for head in range(_HEADS):
        up[head, :width] = torch.eye(width, c.kv_lora_rank)
        down[:, head, :width] = _LOUDNESS * blocks[head + 1].T


def _find(layer: LatentAttention, blocks: list[Tensor], heads: tuple[tuple[tuple[int, int], ...], ...]) -> None:
    """Each head looks for positions where the codes of all its pairs are equal, and copies their code."""
    c, width = layer.config, len(blocks[0])
    assert c.q_lora_rank is not None
    seen = torch.cat((_LOUDNESS * blocks[0], *blocks[1:-1]))  # carried codes are louder
    layer.q_a_proj.weight[: len(seen)] = seen
    layer.q_a_proj.weight[len(seen) :] *= 0.1
    kept = (_BLOCKS - 2) * width
    layer.kv_a_proj_with_mqa.weight[:kept] = seen[:kept]
    layer.kv_a_proj_with_mqa.weight[kept : c.kv_lora_rank] *= 0.1
    queries = layer.q_b_proj.weight.view(c.num_attention_heads, c.qk_head_dim, c.q_lora_rank)
    rows = layer.kv_b_proj.weight.view(c.num_attention_heads, -1, c.kv_lora_rank)
    down = layer.o_proj.weight.view(-1, c.num_attention_heads, c.v_head_dim)
    for head, pairs in enumerate(heads):
        part = min(width, c.qk_nope_head_dim // len(pairs))
        gain = (_MATCH * c.qk_head_dim**0.5 / (part * len(pairs))) ** 0.5
        queries[head] *= 0.1
        rows[head, : c.qk_nope_head_dim] *= 0.1
        for i, (here, there) in enumerate(pairs):
            into = slice(i * part, (i + 1) * part)
            queries[head, into] = gain * torch.eye(c.q_lora_rank)[here * width : here * width + part]
            rows[head, into] = gain * torch.eye(c.kv_lora_rank)[there * width : there * width + part]
        rows[head, c.qk_nope_head_dim : c.qk_nope_head_dim + width] = torch.eye(width, c.kv_lora_rank)
        down[:, head, :width] = blocks[-1].T
