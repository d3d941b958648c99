"""The vision side computes what transformers' ``kimi_k25`` computes, and tells what it cannot pack."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pytest
import torch
from kimi_reference import hugging_face, vision_parameters
from torch import Tensor

from model.vision import VisionModel
from model.vision_config import Grid, VisionConfig

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
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            if "norm" in name and name.endswith("weight"):
                parameter += 1


def random_pixels(config: VisionConfig, grids: Sequence[Grid], seed: int = 1) -> Tensor:
    shape = (sum(grid.patches for grid in grids), 3, config.patch_size, config.patch_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(config: VisionConfig, **options: Any) -> VisionModel:
    model = VisionModel(config, **options)
    randomise(model)
    return model


# ------------------------------------------------------------------------------------- parity with transformers


def their_features(theirs: Any, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Neighbours of as many frames are packed together; transformers 5.23 cannot pool items of different lengths.

    (Nor can its ``get_video_features`` cut the result: it forgets that frames are pooled. So tower and projector here.)
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


@pytest.mark.parametrize("config", [pytest.param(TINY, id="tiny"), pytest.param(WIDE, id="wide")])
@pytest.mark.parametrize("grids", [IMAGES, VIDEOS, [*VIDEOS, *IMAGES]], ids=["images", "videos", "mixed"])
def test_features_and_every_gradient_are_those_of_transformers(config: VisionConfig, grids: list[Grid]):
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
