"""Kimi K2.5 as a whole in small: text and pictures through vision side and policy, against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kimi_reference import reference_config, vision_parameters
from torch import Tensor

from model.config import ModelConfig
from model.media import expand_placeholders, merge_media
from model.transformer import Transformer
from model.vision import VisionModel
from model.vision_config import Grid, VisionConfig

PAD = 9
TEXT = ModelConfig(
    vocab_size=40, hidden_size=32, num_hidden_layers=3, intermediate_size=48, num_attention_heads=2, q_lora_rank=24,
    kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=6, num_experts_per_tok=2,
    moe_intermediate_size=16, routed_scaling_factor=2.827, max_position_embeddings=64,
    rms_norm_eps=1e-6,  # the one that transformers has for the latents
)  # fmt: skip
VISION = VisionConfig(
    patch_size=4, pos_emb_height=6, pos_emb_width=6, num_hidden_layers=2, hidden_size=48, intermediate_size=80,
    num_attention_heads=3, text_hidden_size=TEXT.hidden_size,
)  # fmt: skip
GRIDS = [Grid(1, 4, 6), Grid(1, 2, 8), Grid(1, 6, 6)]


def transformers_model() -> Any:
    fields = (
        "vocab_size", "hidden_size", "num_hidden_layers", "first_k_dense_replace", "intermediate_size", "rms_norm_eps",
        "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size", "norm_topk_prob",
        "routed_scaling_factor", "max_position_embeddings",
    )  # fmt: skip
    text = {name: getattr(TEXT, name) for name in fields} | {
        "num_key_value_heads": TEXT.num_attention_heads, "n_group": 1, "topk_group": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": TEXT.rope_theta},
    }  # fmt: skip
    config = reference_config(VISION, **text)
    config.image_token_id, config.video_token_id = PAD, TEXT.vocab_size
    from transformers import Kimi_K25ForConditionalGeneration

    model = Kimi_K25ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            random = torch.randn(tensor.shape, generator=generator) * 0.15
            tensor.copy_(random + 1 if "norm" in name and name.endswith("weight") else random)
    return model


def policy_weights(theirs: Any) -> dict[str, Tensor]:
    """The language model's weights under the policy's names: gate and up projections are one matrix there."""
    state: dict[str, Tensor] = {"lm_head.weight": theirs.lm_head.weight.detach()}
    text = theirs.model.language_model.state_dict()
    for name, tensor in text.items():
        if name.endswith("gate_proj.weight"):
            up = text[name.replace("gate_proj", "up_proj")]
            state[name.replace("gate_proj", "gate_up_proj")] = torch.cat((tensor, up))
        elif not name.endswith(".up_proj.weight"):
            state[name] = tensor
    return state


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """Two rows with three pictures between words."""
    rows = [[1, 2, PAD, 3, PAD, 4, 5], [6, PAD, 7, 8]]
    counts = [[GRIDS[0].tokens(), GRIDS[1].tokens()], [GRIDS[2].tokens()]]
    filled = [expand_placeholders(row, count, placeholder=PAD) for row, count in zip(rows, counts, strict=True)]
    length = max(map(len, filled))
    return torch.tensor([row + list(range(10, 10 + length - len(row))) for row in filled])


def test_logits_and_gradients_of_text_and_pictures_are_those_of_transformers(tokens: Tensor):
    theirs = transformers_model()
    vision, policy = VisionModel(VISION), Transformer(TEXT).eval()
    vision.load_state_dict({name: p.detach() for name, p in vision_parameters(theirs.model).items()})
    policy.load_state_dict(policy_weights(theirs))
    pixels = torch.randn(sum(g.patches for g in GRIDS), 3, 4, 4, generator=torch.Generator().manual_seed(1))
    grid_thw = torch.tensor([(g.t, g.h, g.w) for g in GRIDS])

    features = vision(pixels, GRIDS)
    swap = policy.embed_tokens.register_forward_hook(
        lambda _, inputs, embedded: merge_media(embedded, inputs[0], features, placeholder=PAD)
    )
    ours = policy.lm_head(policy.hidden(tokens))
    swap.remove()
    expected = theirs(input_ids=tokens, pixel_values=pixels, image_grid_thw=grid_thw, use_cache=False).logits
    assert float(expected.detach().abs().max()) > 0.5
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)
    blind = policy.lm_head(policy.hidden(tokens))
    assert float((blind - expected).detach().abs().max()) > 0.1  # the pictures do matter

    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    for name, reference in vision_parameters(theirs.model).items():
        gradient = vision.get_parameter(name).grad
        assert gradient is not None and reference.grad is not None
        largest = float(reference.grad.abs().max())
        assert largest > 1e-3, f"{name}: nothing to compare"
        assert float((gradient - reference.grad).abs().max()) <= 2e-5 * largest, name
    embedding, reference = policy.embed_tokens.weight.grad, theirs.model.language_model.embed_tokens.weight.grad
    assert embedding is not None
    torch.testing.assert_close(embedding, reference, atol=2e-5, rtol=1e-5)
    assert not embedding[PAD].any()  # what a placeholder would have been embedded as is never seen
