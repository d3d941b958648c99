"""Largest attention logits: those of the softmax, whatever the padding; scaled exactly by the weights."""

from __future__ import annotations

import pytest
import torch
from tiny import random_policy, tiny_model
from torch import Tensor

from model.blocks import attention
from model.blocks.attention import max_logits
from model.kimi.attention import LatentAttention
from model.kimi.config import YarnScaling
from model.kimi.transformer import Transformer

YARN = YarnScaling(factor=4.0, original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=1.0)
SHAPES = {"k25": {}, "no query latent": {"q_lora_rank": None}, "yarn": {"rope_scaling": YARN}}
shapes = pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())


def policy(**changes) -> Transformer:
    model = random_policy(tiny_model(**changes)).train()
    model.collect_logits = True
    return model


def collected(model: Transformer, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[L, H] of one forward pass."""
    blocks = [block.self_attn for block in model.blocks()]
    for block in blocks:
        block.max_logit_H = None
    model(tokens_BT, mask_BT)
    return torch.stack([block.max_logit_H for block in blocks if block.max_logit_H is not None])


def slow_logits(block: LatentAttention, x_TD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[H, T, T] in float64 from the definition: each pair of positions rotated by a complex number."""
    c = block.config
    double = {name: p.detach().double() for name, p in block.named_parameters()}

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + c.latent_eps).sqrt() * double[name]

    def turn(x: Tensor) -> Tensor:
        angles = torch.complex(cos.double(), sin.double())
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * angles).flatten(-2)

    x = x_TD.double()
    if c.q_lora_rank is None:
        q = x @ double["q_proj.weight"].T
    else:
        q = norm(x @ double["q_a_proj.weight"].T, "q_a_layernorm.weight") @ double["q_b_proj.weight"].T
    down = x @ double["kv_a_proj_with_mqa.weight"].T
    latent, k_rope = down[:, : c.kv_lora_rank], turn(down[:, c.kv_lora_rank :])
    kv = norm(latent, "kv_a_layernorm.weight") @ double["kv_b_proj.weight"].T
    out = []
    for head in range(c.num_attention_heads):
        own_q = q[:, head * c.qk_head_dim : (head + 1) * c.qk_head_dim]
        start = head * (c.qk_nope_head_dim + c.v_head_dim)
        k_nope = kv[:, start : start + c.qk_nope_head_dim]
        q_nope, q_rope = own_q[:, : c.qk_nope_head_dim], turn(own_q[:, c.qk_nope_head_dim :])
        out.append((q_nope @ k_nope.T + q_rope @ k_rope.T) * c.softmax_scale)
    return torch.stack(out)


def slow_max(block: LatentAttention, x_TD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    logits = slow_logits(block, x_TD, cos, sin)
    causal = torch.ones(logits.shape[1:], dtype=torch.bool).tril()
    return logits.masked_fill(~causal, -torch.inf).amax((1, 2))


def rows(count: int = 3) -> tuple[Tensor, Tensor, list[int]]:
    """Rows of different lengths, padded with a token that also occurs in rows."""
    lengths = [23, 9, 14][:count]
    g = torch.Generator().manual_seed(0)
    tokens, mask = torch.zeros(count, 23, dtype=torch.long), torch.zeros(count, 23, dtype=torch.bool)
    for i, length in enumerate(lengths):
        tokens[i, :length] = torch.randint(0, 20, (length,), generator=g)
        mask[i, 1:length] = torch.rand(length - 1, generator=g) < 0.5
        mask[i, length - 1] = True
    return tokens, mask, lengths


@shapes
def test_the_largest_logits_are_those_of_the_definition(changes):
    model = policy(**changes)
    tokens, mask, lengths = rows()
    got = collected(model, tokens, mask)[0]  # of the first layer, whose input is known
    block = model.blocks()[0]
    inputs = [block.input_layernorm(model.embed_tokens(row[:n])) for row, n in zip(tokens, lengths, strict=True)]
    each = [slow_max(block.self_attn, x, model.rope_cos[: len(x)], model.rope_sin[: len(x)]) for x in inputs]
    torch.testing.assert_close(got, torch.stack(each).amax(0).float(), rtol=1e-5, atol=1e-5)


def test_padding_counts_for_nothing():
    model = policy()
    tokens, mask, lengths = rows()
    alone = [collected(model, tokens[i : i + 1, :n], mask[i : i + 1, :n]) for i, n in enumerate(lengths)]
    torch.testing.assert_close(collected(model, tokens, mask), torch.stack(alone).amax(0), rtol=1e-5, atol=1e-6)
    wide = torch.full((1, 60), 7)
    wide[0, : lengths[1]] = tokens[1, : lengths[1]]
    behind = torch.zeros(1, 60, dtype=torch.bool)
    behind[:, :23] = mask[1]
    torch.testing.assert_close(collected(model, wide, behind), alone[1], rtol=1e-5, atol=1e-6)


def test_logits_of_a_query_in_the_padding_would_be_larger():
    """The case that the test above excludes exists: a padded query whose logit beats all real ones."""
    g = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 5, 4, generator=g) for _ in range(2))
    real = torch.tensor([[True, True, True, False, False]])
    query[:, :, 3:] *= 100
    small, large = max_logits(query, key, real, 1.0), max_logits(query, key, torch.ones_like(real), 1.0)
    torch.testing.assert_close(small, max_logits(query[:, :, :3], key[:, :, :3], real[:, :3], 1.0), rtol=0, atol=0)
    assert (large > 10 * small.abs()).all()
    assert (max_logits(query, key, torch.zeros_like(real), 1.0) == -torch.inf).all()


def test_queries_in_pieces_give_the_same(monkeypatch):
    g = torch.Generator().manual_seed(1)
    query, key = (torch.randn(2, 3, 17, 4, generator=g) for _ in range(2))
    real = torch.ones(2, 17, dtype=torch.bool)
    whole = max_logits(query, key, real, 0.5)
    monkeypatch.setattr(attention, "_QUERIES", 5)
    torch.testing.assert_close(max_logits(query, key, real, 0.5), whole)


def test_collecting_changes_no_number_and_happens_in_training_only():
    model = policy()
    tokens, mask, _ = rows()
    blocks = [block.self_attn for block in model.blocks()]
    with_it = model(tokens, mask)[0]
    assert all(block.max_logit_H is not None for block in blocks)
    for block in blocks:
        block.max_logit_H = None
    model.eval()
    assert torch.equal(model(tokens, mask)[0], with_it)
    model.train()
    model.collect_logits = False
    assert torch.equal(model(tokens, mask)[0], with_it)
    assert all(block.max_logit_H is None for block in blocks)


def test_several_passes_keep_the_largest():
    model = policy()
    tokens, mask, _ = rows()
    whole = collected(model, tokens, mask)
    collected(model, tokens[:1], mask[:1])
    for i in (1, 2):
        model(tokens[i : i + 1], mask[i : i + 1])
    seen = torch.stack([block.self_attn.max_logit_H for block in model.blocks()])
    torch.testing.assert_close(seen, whole, rtol=1e-5, atol=1e-6)


@shapes
def test_scaling_multiplies_every_logit_of_a_head_and_touches_what_the_paper_says(changes):
    model = policy(**changes)
    block, c = model.blocks()[1].self_attn, model.config
    before = {name: p.detach().clone() for name, p in block.named_parameters()}
    x = torch.randn(12, c.hidden_size, generator=torch.Generator().manual_seed(2))
    tables = model.rope_cos[:12], model.rope_sin[:12]
    logits = slow_logits(block, x, *tables)
    gamma = torch.tensor([0.3, 1.0])
    block.scale_logits(gamma)
    torch.testing.assert_close(
        slow_logits(block, x, *tables), logits * gamma[:, None, None].double(), rtol=1e-6, atol=1e-7
    )
    after = dict(block.named_parameters())
    query = "q_proj.weight" if c.q_lora_rank is None else "q_b_proj.weight"
    nope, rope, width = c.qk_nope_head_dim, c.qk_rope_head_dim, c.qk_nope_head_dim + c.v_head_dim
    factors = {name: torch.ones_like(p) for name, p in before.items()}
    factors[query][:nope], factors[query][nope : nope + rope] = 0.3**0.5, 0.3
    factors["kv_b_proj.weight"][:nope] = 0.3**0.5  # values, the other head and the rotary key stay as they are
    for name, factor in factors.items():
        torch.testing.assert_close(after[name].detach(), before[name] * factor, rtol=1e-6, atol=0)
        assert torch.equal(after[name].detach()[factor == 1], before[name][factor == 1])
    assert width * 2 == len(before["kv_b_proj.weight"])
