"""Kimi K2.5 files with vision: unchanged by a round trip, equal to transformers', mistakes reported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from kimi_reference import vision_parameters
from safetensors.torch import load_file, save_file
from test_hf_config import K2_5
from test_kimi_k25 import CONFIG, PICTURES, VISION, policy_of, random_pixels, transformers_model

from model.family import family_of
from model.kimi.config import ModelConfig
from model.kimi.files.checkpoint import load, save
from model.kimi.files.hf_config import from_hf, to_hf
from model.kimi.files.hf_layout import PREFIXES, layout, published_name
from model.kimi.transformer import Transformer
from model.kimi.vision.config import VisionConfig
from model.kimi.vision.media import MediaBatch
from model.policy_files import INDEX, SINGLE

WQKV, PROJECTOR = "vision_tower.encoder.blocks.1.wqkv.weight", "mm_projector.proj.2.weight"
# config.json of moonshotai/Kimi-K2.5, the vision part
PUBLISHED: dict[str, Any] = {
    "patch_size": 14, "vt_num_hidden_layers": 27, "vt_hidden_size": 1152, "vt_intermediate_size": 4304,
    "vt_num_attention_heads": 16, "init_pos_emb_height": 64, "init_pos_emb_width": 64, "init_pos_emb_time": 4,
    "pos_emb_type": "divided_fixed", "merge_kernel_size": [2, 2], "merge_type": "sd2_tpool",
    "video_attn_type": "spatial_temporal", "mm_projector_type": "patchmerger", "mm_hidden_size": 1152,
    "projector_hidden_act": "gelu", "projector_ln_eps": 1e-5, "text_hidden_size": 7168,
}  # fmt: skip
WHOLE = {"model_type": "kimi_k25", "text_config": K2_5, "vision_config": PUBLISHED}
WHOLE |= {"media_placeholder_token_id": 163605, "tie_word_embeddings": False}


@pytest.fixture(scope="module")
def policy() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def same(first: Transformer, second: Transformer) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000, 1], ids=["one file", "shards", "a file a tensor"])
def test_a_policy_comes_back_with_its_vision_side(policy: Transformer, shard_bytes: int, tmp_path: Path):
    save(policy, tmp_path, "kimi_k25", shard_bytes=shard_bytes)
    again = load(tmp_path).eval()
    assert again.config.vision == VISION and same(again, policy)
    tokens = torch.tensor([[1, *[9] * 6, 2, *[9] * 4, 3, *[9] * 9]])
    media = MediaBatch(pixels_PCSS=random_pixels(PICTURES), grids=PICTURES)
    assert torch.equal(again.hidden(tokens, media=media), policy.hidden(tokens, media=media))
    blind = load(tmp_path, vision=False).eval()
    assert blind.vision is None and torch.equal(blind.hidden(tokens), policy.hidden(tokens))
    without = again.config.model_copy(update={"vision": None})
    assert same(family_of(without).load_parts(tmp_path, without), blind)  # type: ignore[arg-type]


def test_transformers_reads_what_we_write_of_what_it_wrote_bit_by_bit(tmp_path: Path):
    theirs = transformers_model()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs").eval()
    assert ours.config.model_copy(update={"latent_norm_eps": None}) == CONFIG.model_copy(update=ours_only(ours))
    assert same(ours, policy_of(theirs))
    save(ours, tmp_path / "ours", "kimi_k25")
    first, second = (load_file(tmp_path / name / SINGLE) for name in ("theirs", "ours"))
    first = {published_name(name): tensor for name, tensor in first.items()}  # it writes some under names of its own
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    again, report = type(theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    one, two = theirs.state_dict(), again.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert len(vision_parameters(again.model)) > 30

    tokens = torch.tensor([[1, *[9] * 6, 2, *[9] * 4, 3, *[9] * 9]])
    pixels, grid = random_pixels(PICTURES), torch.tensor([(g.t, g.h, g.w) for g in PICTURES])
    expected = again.eval()(input_ids=tokens, pixel_values=pixels, image_grid_thw=grid, use_cache=False).logits
    seen = ours.lm_head(ours.hidden(tokens, media=MediaBatch(pixels_PCSS=pixels, grids=PICTURES)))
    torch.testing.assert_close(seen, expected, atol=2e-5, rtol=0)


def ours_only(model: Transformer) -> dict[str, Any]:
    """Fields that a foreign config.json cannot have: initialisation of matrices and embeddings."""
    names = ("initializer_range", "embedding_range", "embedding_mean", "look_back")
    return {name: getattr(model.config, name) for name in names}


def test_in_bfloat16_the_vision_side_is_written_too(policy: Transformer, tmp_path: Path):
    save(policy, tmp_path / "half", "kimi_k25", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "half" / SINGLE)
    assert tensors[WQKV].dtype == tensors[PROJECTOR].dtype == torch.bfloat16
    half = load(tmp_path / "half", torch.bfloat16)
    save(half, tmp_path / "again", "kimi_k25")
    assert (tmp_path / "again" / SINGLE).read_bytes() == (tmp_path / "half" / SINGLE).read_bytes()


def test_beside_int4_experts_the_vision_side_is_whole(tmp_path: Path):
    """The form of the published checkpoint."""
    wide = {"hidden_size": 64, "moe_intermediate_size": 32, "vision": {**VISION.model_dump(), "text_hidden_size": 64}}
    torch.manual_seed(1)
    policy = Transformer(ModelConfig.model_validate({**CONFIG.model_dump(), **wide}))
    save(policy, tmp_path, "kimi_k25", int4_experts=True, shard_bytes=50_000)
    again, state = load(tmp_path), policy.state_dict()
    off = {name for name, tensor in again.state_dict().items() if not torch.equal(tensor, state[name])}
    assert off and all(".experts." in name for name in off)


def test_k2_5s_vision_section_is_read_in_either_spelling():
    config = from_hf(WHOLE)
    assert config.vision == VisionConfig() and config.media_placeholder_token_id == 163605
    native = {"hidden_size": 1152, "pos_emb_height": 64, "rope_parameters": {"rope_type": "axial"}}
    hf = {"model_type": "kimi_k25", "text_config": K2_5, "vision_config": native, "image_token_id": 163605}
    assert from_hf(hf) == config
    assert from_hf({**WHOLE, "vision_config": None}) == from_hf(K2_5)
    assert from_hf(to_hf(config, "kimi_k25")) == config
    assert from_hf(to_hf(CONFIG, "kimi_k25")) == CONFIG
    assert {key: to_hf(config, "kimi_k25")["vision_config"][key] for key in PUBLISHED} == PUBLISHED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pos_emb_type": "learned"}, "vision_config.pos_emb_type='learned' is not supported, only 'divided_fixed'"),
        ({"hidden_size": 1024}, "vt_hidden_size=1152, vision_config.hidden_size=1024: two spellings"),
        ({"mm_hidden_size": 1024}, "mm_hidden_size=1024 is not supported"),
        ({"vt_num_attention_heads": 7}, "must be a multiple of 4 x num_attention_heads=7"),
        ({"text_hidden_size": 4096}, "vision.text_hidden_size=4096 must be hidden_size=7168"),
    ],
)
def test_a_vision_section_that_cannot_be_had_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError) as error:
        from_hf({**WHOLE, "vision_config": PUBLISHED | change})
    assert message in str(error.value)


def test_k2_5_has_the_published_number_and_size_of_vision_tensors():
    slots = layout(from_hf(WHOLE), PREFIXES["kimi_k25"])
    vision = {name: slot.shape for name, slot in slots.items() if not name.startswith("language_model.")}
    assert len(vision) == 335
    experts = sum(".experts." in name for name in slots)
    assert len(slots) + 2 * experts == 208_550  # an expert's matrix is codes, scales and shape
    size = {part: sum(math.prod(s) for n, s in vision.items() if n.startswith(part)) for part in ("vision", "mm_")}
    assert (round(size["vision"] / 1e6, 1), round(size["mm_"] / 1e6, 1)) == (416.9, 54.3)
    assert vision["vision_tower.encoder.blocks.26.wqkv.weight"] == (3456, 1152)
    assert vision["vision_tower.patch_embed.pos_emb.weight"] == (64, 64, 1152)
    assert vision["mm_projector.proj.2.weight"] == (7168, 4608)


@pytest.fixture
def folder(policy: Transformer, tmp_path: Path) -> Path:
    save(policy, tmp_path, "kimi_k25", shard_bytes=20_000)
    return tmp_path


def shard_with(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def rewrite(file: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(file) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


@pytest.mark.parametrize("name", [WQKV, PROJECTOR])
def test_a_vision_tensor_of_wrong_shape_or_missing(folder: Path, name: str):
    file = shard_with(folder, name)
    shape = list(load_file(file)[name].shape)
    rewrite(file, **{name: torch.zeros(shape[0] - 3, shape[1])})
    with pytest.raises(ValueError) as error:
        load(folder)
    assert f"{file}: {name} has shape [{shape[0] - 3}, {shape[1]}], config.json makes it {shape}" in str(error.value)
    rewrite(file, **{name: None})
    with pytest.raises(ValueError, match="lacks") as error:
        load(folder)
    assert name in str(error.value) and str(file) in str(error.value)
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][name]
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=f"lacks {name}"):
        load(folder)


def test_a_vision_tensor_that_is_none_of_the_model_or_there_twice(folder: Path):
    file = sorted(folder.glob("*.safetensors"))[0]
    strange = "vision_tower.encoder.blocks.2.wo.weight"
    rewrite(file, **{strange: torch.zeros(2, 2)})
    with pytest.raises(ValueError, match=f"{file}: tensor {strange} is none of this model"):
        load(folder)
    rewrite(file, **{strange: None, WQKV: torch.zeros(144, 48)})
    with pytest.raises(ValueError, match=f"tensor {WQKV} is there twice"):
        load(folder)


def test_deepseeks_format_has_no_place_for_a_vision_side(policy: Transformer, tmp_path: Path):
    with pytest.raises(ValueError, match="write format='kimi_k25'"):
        save(policy, tmp_path, "hf")
    assert not list(tmp_path.iterdir())
