"""The vision tower equals transformers' ``kimi_k25``, and refuses what it cannot pack."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from kimi_reference import hugging_face, reference_config, vision_parameters
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.kimi.files.vision_checkpoint import from_published, to_published
from model.kimi.vision.config import Grid, VisionConfig
from model.kimi.vision.tower import VisionModel

TINY = VisionConfig(
    patch_size=4, pos_emb_height=6, pos_emb_width=6, num_hidden_layers=2, hidden_size=48, intermediate_size=80,
    num_attention_heads=3, text_hidden_size=40,
)  # fmt: skip
WIDE = VisionConfig(
    patch_size=2, pos_emb_height=8, pos_emb_width=8, pos_emb_time=3, num_hidden_layers=3, hidden_size=32,
    intermediate_size=44, num_attention_heads=2, merge_kernel_size=(2, 3), rope_theta=100.0, text_hidden_size=24,
    projection_layer_norm_eps=1e-3,
)  # fmt: skip
IMAGES = [Grid(1, 4, 6), Grid(1, 2, 12), Grid(1, 6, 6), Grid(1, 4, 6)]  # the third has the table's own size in TINY
VIDEOS = [Grid(3, 4, 6), Grid(3, 8, 6), Grid(2, 2, 6)]


def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            matrix = parameter.dim() > 1 and "position" not in name
            std = parameter[0].numel() ** -0.5 if matrix else 0.15  # features stay of one size at any width
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
            if "norm" in name and name.endswith("weight"):
                parameter += 1


def random_pixels(config: VisionConfig, grids: Sequence[Grid], seed: int = 1) -> Tensor:
    shape = (sum(grid.patches for grid in grids), 3, config.patch_size, config.patch_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(config: VisionConfig, **options: Any) -> VisionModel:
    model = VisionModel(config, **options)
    randomise(model)
    return model


def their_features(theirs: Any, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Consecutive items with equal frames are packed together; transformers 5.23 cannot pool others.

    (Its ``get_video_features`` cannot split the result either, so tower and projector are called directly.)
    """
    features, start = [], 0
    for _, run in groupby(grids, key=lambda grid: grid.t):
        items = list(run)
        stop = start + sum(grid.patches for grid in items)
        grid_thw = torch.tensor([(grid.t, grid.h, grid.w) for grid in items])
        pooled = theirs.vision_tower(pixels[start:stop], grid_thw=grid_thw).pooler_output
        features.append(theirs.mm_projector(pooled).squeeze(1))
        start = stop
    return torch.cat(features)


# K2.5's widths, patches and position table, two of its layers.
K25 = VisionConfig(num_hidden_layers=2, text_hidden_size=64)


PACKS = {"images": IMAGES, "videos": VIDEOS, "mixed": [*VIDEOS, *IMAGES]}
CASES = [(shape, pack) for shape in ("tiny", "wide") for pack in PACKS] + [("k25", "mixed")]


@pytest.mark.parametrize(("shape", "pack"), CASES)
def test_features_and_every_gradient_are_those_of_transformers(shape: str, pack: str):
    config, grids = {"tiny": TINY, "wide": WIDE, "k25": K25}[shape], PACKS[pack]
    theirs = hugging_face(config)
    randomise(theirs)
    reference = vision_parameters(theirs)
    ours = VisionModel(config)
    ours.load_state_dict({name: p.detach() for name, p in reference.items()})  # strict: the names are theirs
    pixels = random_pixels(config, grids)
    results = {}
    for key, run in (("ours", lambda p: ours(p, grids)), ("theirs", lambda p: their_features(theirs, p, grids))):
        leaf = pixels.clone().requires_grad_()
        features = run(leaf)
        weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
        (features * weight).sum().backward()
        results[key] = (features.detach(), leaf.grad)
    assert results["ours"][0].abs().max() > 0.1
    torch.testing.assert_close(results["ours"], results["theirs"], atol=2e-5, rtol=1e-5)
    for name, parameter in ours.named_parameters():
        gradient, expected = parameter.grad, reference[name].grad
        assert gradient is not None and expected is not None, name
        largest = float(expected.abs().max())
        assert largest > 1e-4, f"{name}: nothing to compare"
        assert float((gradient - expected).abs().max()) <= 2e-5 * largest, name


def test_published_weights_are_converted_as_transformers_converts_them(tmp_path: Path):
    weights = published_weights(TINY)
    config = reference_config(TINY)
    from transformers import Kimi_K25ForConditionalGeneration

    own = Kimi_K25ForConditionalGeneration(config)
    own.save_pretrained(tmp_path)  # writes the published names
    text = {k: v for k, v in load_file(tmp_path / "model.safetensors").items() if k.startswith("language_model.")}
    vision = {k: v.float().contiguous() for k, v in weights.items() if not k.startswith("language_model.")}
    save_file(text | vision, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, report = Kimi_K25ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    expected, ours = vision_parameters(theirs.model), from_published(weights, TINY)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name].float(), expected[name]) for name in expected)


def published_weights(config: VisionConfig, seed: int = 3) -> dict[str, Tensor]:
    """Random weights under the published names, and one of the language model."""
    hidden, wide, merged = config.hidden_size, config.intermediate_size, config.merged_size
    shapes: dict[str, tuple[int, ...]] = {
        "vision_tower.patch_embed.proj.weight": (hidden, 3, config.patch_size, config.patch_size),
        "vision_tower.patch_embed.pos_emb.weight": (config.pos_emb_height, config.pos_emb_width, hidden),
        "mm_projector.proj.0.weight": (merged, merged),
        "mm_projector.proj.2.weight": (config.text_hidden_size, merged),
        "language_model.model.norm.weight": (config.text_hidden_size,),
    }
    for layer in range(config.num_hidden_layers):
        block = f"vision_tower.encoder.blocks.{layer}."
        shapes |= {f"{block}wqkv.weight": (3 * hidden, hidden), f"{block}wo.weight": (hidden, hidden)}
        shapes |= {f"{block}mlp.fc0.weight": (wide, hidden), f"{block}mlp.fc1.weight": (hidden, wide)}
        shapes |= {f"{block}norm0.weight": (hidden,), f"{block}norm1.weight": (hidden,)}
    shapes |= {"vision_tower.encoder.final_layernorm.weight": (hidden,), "mm_projector.pre_norm.weight": (hidden,)}
    biases = [name for name in shapes if "pos_emb" not in name and not name.startswith("language")]
    shapes |= {name.replace("weight", "bias"): shapes[name][:1] for name in biases}
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.15
        + ("norm" in name and "weight" in name)
        for name, shape in shapes.items()
    }


def reference_features(weights: dict[str, Tensor], config: VisionConfig, pixels: Tensor, grid: Grid) -> Tensor:
    """One item in float64, following the published model: fused projections, complex rotation of neighbours."""

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ weights[name + ".weight"].T + weights[name + ".bias"]

    def norm(name: str, x: Tensor, eps: float = 1e-5) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + eps).sqrt()
        return x * weights[name + ".weight"] + weights[name + ".bias"]

    hidden, heads, width = config.hidden_size, config.num_attention_heads, config.head_dim
    x = torch.einsum("pcij,dcij->pd", pixels, weights["vision_tower.patch_embed.proj.weight"])
    x = x + weights["vision_tower.patch_embed.proj.bias"]
    table = weights["vision_tower.patch_embed.pos_emb.weight"].permute(2, 0, 1)[None]
    place = torch.nn.functional.interpolate(table, (grid.h, grid.w), mode="bicubic")[0].permute(1, 2, 0)
    angles = torch.empty(grid.t, grid.h, grid.w, width // 2, dtype=torch.float64)
    x = x.view(grid.t, grid.h, grid.w, hidden) + place
    for t in range(grid.t if grid.t > 1 else 0):
        for d in range(hidden // 2):
            angle = t / 10000 ** (2 * d / hidden)
            x[t, :, :, d] += math.sin(angle)
            x[t, :, :, hidden // 2 + d] += math.cos(angle)
    for h in range(grid.h):
        for w in range(grid.w):
            for pair in range(width // 2):
                position = w if pair % 2 == 0 else h
                angles[:, h, w, pair] = position / config.rope_theta ** (4 * (pair // 2) / width)
    turn = torch.polar(torch.ones_like(angles), angles).view(-1, 1, width // 2)
    x = x.view(-1, hidden)
    for layer in range(config.num_hidden_layers):
        block = f"vision_tower.encoder.blocks.{layer}."
        q, k, v = linear(block + "wqkv", norm(block + "norm0", x)).view(-1, 3, heads, width).unbind(1)
        q, k = (torch.view_as_complex(y.reshape(len(x), heads, -1, 2)) * turn for y in (q, k))
        scores = torch.einsum("qhr,khr->hqk", torch.view_as_real(q).flatten(2), torch.view_as_real(k).flatten(2))
        mixed = torch.einsum("hqk,khr->qhr", (scores * width**-0.5).softmax(-1), v).flatten(1)
        x = x + linear(block + "wo", mixed)
        inner = linear(block + "mlp.fc0", norm(block + "norm1", x))
        inner = inner / 2 * (1 + ((2 / math.pi) ** 0.5 * (inner + 0.044715 * inner**3)).tanh())
        x = x + linear(block + "mlp.fc1", inner)
    x = norm("vision_tower.encoder.final_layernorm", x).view(grid.t, grid.h, grid.w, hidden).mean(0)
    rows, columns = config.merge_kernel_size
    tokens = [
        torch.cat([x[h + i, w + j] for i in range(rows) for j in range(columns)])
        for h in range(0, grid.h, rows)
        for w in range(0, grid.w, columns)
    ]
    merged = torch.stack(tokens).view(len(tokens), -1, hidden)
    inner = linear(
        "mm_projector.proj.0", norm("mm_projector.pre_norm", merged, config.projection_layer_norm_eps).flatten(1)
    )
    return linear("mm_projector.proj.2", inner / 2 * (1 + (inner / 2**0.5).erf()))


@pytest.mark.parametrize("config", [pytest.param(TINY, id="tiny"), pytest.param(WIDE, id="wide")])
def test_published_weights_give_the_published_model(config: VisionConfig):
    weights = published_weights(config)
    ours = VisionModel(config).double()
    ours.load_state_dict(from_published(weights, config))  # strict: every parameter is there, and no other
    grids = [*VIDEOS, *IMAGES]
    pixels = random_pixels(config, grids).double()
    with torch.no_grad():
        features = ours(pixels, grids)
    parts = zip(pixels.split([grid.patches for grid in grids]), grids, strict=True)
    expected = torch.cat([reference_features(weights, config, part, grid) for part, grid in parts])
    assert float(expected.abs().max()) > 0.5
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)  # positions are float32 in ours


def test_weights_go_back_to_the_published_form():
    weights = published_weights(WIDE)
    back = to_published(from_published(weights, WIDE), WIDE)
    vision = {name: tensor for name, tensor in weights.items() if not name.startswith("language_model.")}
    assert back.keys() == vision.keys()
    assert all(torch.equal(back[name], vision[name]) for name in vision)


def test_weights_that_are_not_the_vision_sides_are_told():
    with pytest.raises(ValueError, match="weights hold no name that begins with vision_tower"):
        from_published({"language_model.model.norm.weight": torch.ones(3)}, TINY)
    with pytest.raises(ValueError, match=r"wqkv.weight has 9 rows: expected 3 x hidden_size=48"):
        from_published({"vision_tower.encoder.blocks.0.wqkv.weight": torch.ones(9, 48)}, TINY)


def test_kimi_k25s_parameters_are_counted():
    with torch.device("meta"):
        model = VisionModel(VisionConfig())
    tower, projector = (sum(p.numel() for p in part.parameters()) for part in (model.vision_tower, model.mm_projector))
    layer = 4 * (1152 * 1152 + 1152) + (1152 * 4304 + 4304) + (4304 * 1152 + 1152) + 2 * 2 * 1152
    assert tower == 27 * layer + (3 * 14 * 14 + 1) * 1152 + 64 * 64 * 1152 + 2 * 1152 == 416_866_032  # 416.9 M
    assert projector == 2 * 1152 + (4608 + 1) * 4608 + (4608 + 1) * 7168 == 54_277_888  # 54.3 M


def test_an_item_has_the_same_features_alone_and_in_a_pack():
    model, grids = make(TINY), [*VIDEOS, *IMAGES]
    pixels = random_pixels(TINY, grids)
    with torch.no_grad():
        packed = model(pixels, grids).split([grid.tokens() for grid in grids])
        alone = [model(part, [g]) for part, g in zip(pixels.split([g.patches for g in grids]), grids, strict=True)]
    for together, single in zip(packed, alone, strict=True):
        torch.testing.assert_close(together, single, atol=2e-5, rtol=0)


def test_frames_of_a_chunk_see_each_other_and_their_order_counts():
    model, grid = make(TINY), Grid(2, 4, 4)
    pixels = random_pixels(TINY, [grid])
    with torch.no_grad():
        forwards, backwards = model(pixels, [grid]), model(pixels.view(2, 16, 3, 4, 4).flip(0).flatten(0, 1), [grid])
        apart = torch.stack([model(frame, [Grid(1, 4, 4)]) for frame in pixels.split(16)]).mean(0)
    assert float((forwards - backwards).abs().max()) > 1e-3
    assert float((forwards - apart).abs().max()) > 1e-3


def test_a_frozen_tower_gets_no_gradient_and_the_projector_the_same_one():
    pixels = random_pixels(TINY, IMAGES)
    frozen, trained = make(TINY, freeze_tower=True), make(TINY)
    for model in (frozen, trained):
        model(pixels, IMAGES).square().sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in frozen.vision_tower.parameters())
    assert all(p.grad is not None for p in trained.parameters())
    for ours, theirs in zip(frozen.mm_projector.parameters(), trained.mm_projector.parameters(), strict=True):
        assert ours.grad is not None and torch.equal(ours.grad, theirs.grad)
    frozen.freeze_tower(False)
    frozen(pixels, IMAGES).square().sum().backward()
    assert all(p.grad is not None for p in frozen.vision_tower.parameters())


def test_bfloat16_stays_near_float32():
    """Measured: largest difference 0.020, mean 0.0043, where features reach 2.6. transformers' own: 0.020, 0.0042."""
    model, grids = make(TINY), [*VIDEOS, *IMAGES]
    pixels = random_pixels(TINY, grids)
    with torch.no_grad():
        exact = model(pixels, grids)
        off = (model.bfloat16()(pixels.bfloat16(), grids).float() - exact).abs()
    assert float(exact.abs().max()) > 1
    assert float(off.max()) < 0.04 and float(off.mean()) < 0.007


@pytest.mark.parametrize(
    ("pixels", "grids", "message"),
    [
        ((24, 3, 4, 4), [Grid(1, 4, 4)], "pixels hold 24 patches but grids ask for 16"),
        ((16, 3, 5, 4), [Grid(1, 4, 4)], r"expected \[patches, 3, 4, 4\]"),
        ((12, 3, 4, 4), [Grid(1, 4, 3)], "h and w must be multiples of 2 and 2"),
        ((20, 3, 4, 4), [Grid(5, 2, 2)], r"grids\[0\]=Grid\(t=5, h=2, w=2\): sides must be positive and t at most 4"),
        ((0, 3, 4, 4), [], "grids is empty"),
    ],
)
def test_pixels_and_grids_that_do_not_fit_are_told(pixels: tuple[int, ...], grids: list[Grid], message: str):
    with pytest.raises(ValueError, match=message):
        make(TINY)(torch.zeros(pixels), grids)


def test_shapes_that_cannot_be_rotated_are_told():
    with pytest.raises(ValueError, match="hidden_size=50 must be a multiple of 4 x num_attention_heads=3"):
        VisionConfig(hidden_size=50, num_attention_heads=3)
