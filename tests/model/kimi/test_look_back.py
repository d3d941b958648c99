"""First-layer heads start by looking a fixed number of positions back, the next ones by matching."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from model.blocks.rotary import rotate
from model.kimi.config import ModelConfig
from model.kimi.transformer import Transformer

LENGTH = 40


def attention_HTT(model: Transformer, layer: int = 0) -> Tensor:
    """The weights that the heads of the first layer give, on random tokens."""
    c = model.config
    block = model.blocks()[layer]
    attention, heads = block.self_attn, c.num_attention_heads
    tokens = torch.randint(0, c.vocab_size, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    x = block.input_layernorm(model.embed_tokens(tokens))[0]
    cos, sin = model.rope_cos[:LENGTH], model.rope_sin[:LENGTH]
    q = attention.q_b_proj(attention.q_a_layernorm(attention.q_a_proj(x))).view(LENGTH, heads, -1)
    q_nope, q_rope = q.split((c.qk_nope_head_dim, c.qk_rope_head_dim), -1)
    latent, k_rope = attention.kv_a_proj_with_mqa(x).split((c.kv_lora_rank, c.qk_rope_head_dim), -1)
    k_nope = attention.kv_b_proj(attention.kv_a_layernorm(latent)).view(LENGTH, heads, -1)[..., : c.qk_nope_head_dim]
    q = torch.cat((q_nope, rotate(q_rope, cos[:, None], sin[:, None])), -1)
    k = torch.cat((k_nope, rotate(k_rope, cos, sin)[:, None].expand(-1, heads, -1)), -1)
    scores = torch.einsum("thd,shd->hts", q, k) / c.qk_head_dim**0.5
    return scores.masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf).softmax(-1).detach()


@pytest.mark.parametrize("seed", [0, 1])
def test_head_h_looks_h_plus_one_positions_back_from_the_start(seed: int):
    torch.manual_seed(seed)
    weights = attention_HTT(Transformer(ModelConfig()))
    for head in range(4):
        there = weights[head].diagonal(-(head + 1))[LENGTH // 2 :]
        assert there.mean() > 0.8


def test_without_it_no_head_does():
    torch.manual_seed(0)
    weights = attention_HTT(Transformer(ModelConfig(look_back=False)))
    assert all(weights[head].diagonal(-(head + 1))[LENGTH // 2 :].mean() < 0.3 for head in range(4))


def repeated_p(config: ModelConfig, seed: int) -> float:
    """Mean probability, before training, of the token that followed the same two tokens before."""
    torch.manual_seed(seed)
    model = Transformer(config)
    pieces = torch.randperm(config.vocab_size)[:60].view(20, 3)
    tokens = torch.cat((pieces.flatten(), pieces[torch.randperm(20)].flatten()))[None]
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, 62::3] = True
    return float(model(tokens, mask)[0].detach().exp().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_what_stood_behind_the_same_tokens_before_is_expected_again_from_the_start(seed: int):
    assert repeated_p(ModelConfig(), seed) > 0.05 > 20 * repeated_p(ModelConfig(look_back=False), seed)


def test_heads_match_only_where_the_shape_has_room():
    torch.manual_seed(0)
    narrow = Transformer(ModelConfig(v_head_dim=4))
    assert attention_HTT(narrow)[1].diagonal(-2)[LENGTH // 2 :].mean() > 0.8  # they look back all the same
    assert repeated_p(ModelConfig(v_head_dim=4), 0) < 0.01


def test_without_what_it_needs_it_is_left_out():
    for missing in ({"embedding_mean": 0.0}, {"q_lora_rank": None}):
        built = []
        for wanted in (True, False):
            torch.manual_seed(0)
            built.append(Transformer(tiny_model(**missing, look_back=wanted)).state_dict())
        assert all(torch.equal(weights, built[1][name]) for name, weights in built[0].items())
    with torch.device("meta"):
        Transformer(tiny_model())
