"""A small Kimi K2.5: text, pictures and video chunks through one forward pass, against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kimi_reference import reference_config, vision_parameters
from torch import Tensor

from model.kimi.config import ModelConfig
from model.kimi.transformer import Transformer
from model.kimi.vision.config import Grid, VisionConfig
from model.kimi.vision.media import MediaBatch

PAD = 9
VISION = VisionConfig(
    patch_size=4, pos_emb_height=6, pos_emb_width=6, num_hidden_layers=2, hidden_size=48, intermediate_size=80,
    num_attention_heads=3, text_hidden_size=32,
)  # fmt: skip
CONFIG = ModelConfig(
    vocab_size=40, hidden_size=32, num_hidden_layers=3, intermediate_size=48, num_attention_heads=2, q_lora_rank=24,
    kv_lora_rank=16, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=6, num_experts_per_tok=2,
    moe_intermediate_size=16, routed_scaling_factor=2.827, max_position_embeddings=64,
    rms_norm_eps=1e-6,  # the one that transformers has for the latents
    vision=VISION, media_placeholder_token_id=PAD,
)  # fmt: skip
PICTURES = [Grid(1, 4, 6), Grid(1, 2, 8), Grid(1, 6, 6)]
WITH_CHUNKS = [Grid(1, 4, 6), Grid(3, 2, 8), Grid(4, 6, 6)]


def transformers_model() -> Any:
    fields = (
        "vocab_size", "hidden_size", "num_hidden_layers", "first_k_dense_replace", "intermediate_size", "rms_norm_eps",
        "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size", "norm_topk_prob",
        "routed_scaling_factor", "max_position_embeddings",
    )  # fmt: skip
    text = {name: getattr(CONFIG, name) for name in fields} | {
        "num_key_value_heads": CONFIG.num_attention_heads, "n_group": 1, "topk_group": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": CONFIG.rope_theta},
    }  # fmt: skip
    config = reference_config(VISION, **text)
    config.image_token_id, config.video_token_id = PAD, CONFIG.vocab_size
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


def policy_of(theirs: Any) -> Transformer:
    policy = Transformer(CONFIG).eval()
    vision = {f"vision.{name}": p.detach() for name, p in vision_parameters(theirs.model).items()}
    policy.load_state_dict(policy_weights(theirs) | vision)
    return policy


def random_pixels(grids: list[Grid]) -> Tensor:
    return torch.randn(sum(g.patches for g in grids), 3, 4, 4, generator=torch.Generator().manual_seed(1))


def media_inputs(theirs: Any, pixels: Tensor, grids: list[Grid]) -> dict[str, Any]:
    """The inputs of transformers' forward, with features item by item: it cannot split items with frames."""
    if all(grid.t == 1 for grid in grids):
        return {"pixel_values": pixels, "image_grid_thw": torch.tensor([(g.t, g.h, g.w) for g in grids])}
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    rows = []
    for item, grid in zip(pixels.split([grid.patches for grid in grids]), grids, strict=True):
        merged = theirs.model.vision_tower(item, grid_thw=torch.tensor([(grid.t, grid.h, grid.w)])).pooler_output
        rows.append(theirs.model.mm_projector(merged).squeeze(1))
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=rows)}}


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    """Two rows with three items between words; a chunk has as many tokens as a picture of its size."""
    first, second, third = ([PAD] * grid.tokens() for grid in PICTURES)
    filled = [[1, 2, *first, 3, *second, 4, 5], [6, *third, 7, 8]]
    length = max(map(len, filled))
    return torch.tensor([row + list(range(10, 10 + length - len(row))) for row in filled])


@pytest.mark.parametrize("grids", [PICTURES, WITH_CHUNKS], ids=["pictures", "pictures and video chunks"])
def test_logits_and_gradients_are_those_of_transformers(tokens: Tensor, grids: list[Grid]):
    theirs = transformers_model()
    policy, pixels = policy_of(theirs), random_pixels(grids)
    ours = policy.lm_head(policy.hidden(tokens, media=MediaBatch(pixels_PCSS=pixels, grids=grids)))
    expected = theirs(input_ids=tokens, use_cache=False, **media_inputs(theirs, pixels, grids)).logits
    assert float(expected.detach().abs().max()) > 0.5
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)
    blind = policy.lm_head(policy.hidden(tokens))
    assert float((blind - expected).detach().abs().max()) > 0.1  # the pictures do matter

    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    gradients = {f"vision.{name}": p.grad for name, p in vision_parameters(theirs.model).items()}
    gradients |= text_gradients(theirs)
    assert gradients.keys() == dict(policy.named_parameters()).keys()
    for name, reference in gradients.items():
        gradient = policy.get_parameter(name).grad
        assert gradient is not None and reference is not None
        largest = float(reference.abs().max())
        assert largest > 1e-3, f"{name}: nothing to compare"
        assert float((gradient - reference).abs().max()) <= 2e-5 * largest, name
    embedding = policy.embed_tokens.weight.grad
    assert embedding is not None and not embedding[PAD].any()  # a placeholder's own embedding is never seen


def text_gradients(theirs: Any) -> dict[str, Tensor | None]:
    """Gradients of the language model under our names, gate and up projections as one matrix."""
    named = {"lm_head.weight": theirs.lm_head.weight, **dict(theirs.model.language_model.named_parameters())}
    out: dict[str, Tensor | None] = {}
    for name, parameter in named.items():
        if name.endswith("gate_proj.weight"):
            up = named[name.replace("gate_proj", "up_proj")]
            out[name.replace("gate_proj", "gate_up_proj")] = torch.cat((parameter.grad, up.grad))
        elif not name.endswith(".up_proj.weight"):
            out[name] = parameter.grad
    return out


def test_a_frozen_tower_gets_no_gradient_and_its_projector_does(tokens: Tensor):
    torch.manual_seed(0)
    policy = Transformer(CONFIG)
    media = MediaBatch(pixels_PCSS=random_pixels(PICTURES), grids=PICTURES)
    policy.freeze_tower()
    policy.hidden(tokens, media=media).square().sum().backward()
    vision = {name: p.grad for name, p in policy.named_parameters() if name.startswith("vision.")}
    assert all((grad is None) == name.startswith("vision.vision_tower.") for name, grad in vision.items())
    policy.freeze_tower(False)
    policy.hidden(tokens, media=media).square().sum().backward()
    assert all(p.grad is not None for name, p in policy.named_parameters() if name.startswith("vision."))


def test_without_vision_the_language_model_begins_as_it_did(tokens: Tensor):
    """Same seed, same weights, same numbers: a vision section only adds parameters."""
    torch.manual_seed(3)
    plain = Transformer(CONFIG.model_copy(update={"vision": None, "media_placeholder_token_id": None}))
    torch.manual_seed(3)
    seeing = Transformer(CONFIG)
    added = {name for name in seeing.state_dict() if name.startswith("vision.")}
    assert added and seeing.state_dict().keys() - added == plain.state_dict().keys()
    assert all(torch.equal(tensor, seeing.state_dict()[name]) for name, tensor in plain.state_dict().items())
    assert torch.equal(plain.hidden(tokens), seeing.hidden(tokens))
    assert "vision" not in plain.config.model_dump() and "vision" in seeing.config.model_dump()


def test_places_may_be_given_where_a_placeholder_was_written_as_text(tokens: Tensor):
    policy = Transformer(CONFIG).eval()
    pixels, written = random_pixels(PICTURES), tokens.clone()
    written[1, 0] = PAD
    media = MediaBatch(pixels_PCSS=pixels, grids=PICTURES, places_BT=tokens == PAD)
    with_text = policy.embedded(written, media)
    assert torch.equal(with_text[1, 0], policy.embed_tokens.weight[PAD])
    assert torch.equal(with_text[0], policy.embedded(tokens, media)[0])
    with pytest.raises(ValueError, match="placeholders"):
        policy.embedded(written, MediaBatch(pixels_PCSS=pixels, grids=PICTURES))


def test_what_does_not_fit_together_is_named():
    plain: dict[str, Any] = {**CONFIG.model_dump(), "vision": None}
    media = MediaBatch(pixels_PCSS=random_pixels(PICTURES), grids=PICTURES)
    with pytest.raises(ValueError, match="without a vision section"):
        Transformer(ModelConfig(**plain)).hidden(torch.zeros(1, 4, dtype=torch.long), media=media)
    with pytest.raises(ValueError, match="text_hidden_size=40 must be hidden_size=32"):
        ModelConfig(**plain | {"vision": VISION.model_copy(update={"text_hidden_size": 40})})
    for bad in (None, 40):
        with pytest.raises(ValueError, match=f"media_placeholder_token_id={bad}"):
            ModelConfig(**plain | {"vision": VISION, "media_placeholder_token_id": bad})
