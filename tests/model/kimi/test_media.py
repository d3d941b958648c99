"""Pictures become the patches of transformers' processor, and features land at their placeholders."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from kimi_reference import processors

from model.kimi.vision.config import Grid, MediaLimits
from model.kimi.vision.media import (
    Media,
    fit,
    merge_media,
    open_image,
    pack,
    preprocess_image,
)

SMALL = MediaLimits(image_patches=40, side_patches=8)
THEIR_SMALL: dict[str, Any] = {"size": {"max_height": 8, "max_width": 8}}
SIZES = [(30, 45), (28, 56), (1, 1), (5, 200), (300, 211), (113, 112), (211, 300)]


def noise(height: int, width: int, frames: int | None = None, seed: int = 0) -> np.ndarray:
    shape = (height, width, 3) if frames is None else (frames, height, width, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def channels_first(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).movedim(-1, -3)


@pytest.mark.parametrize(
    ("limits", "theirs"), [(MediaLimits(), {}), (SMALL, {"max_patches": 40, **THEIR_SMALL})], ids=["k25", "small"]
)
def test_pictures_are_those_of_transformers_bit_by_bit(limits: MediaLimits, theirs: dict[str, Any]):
    processor, _ = processors(image=theirs)
    pictures = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
    expected = processor(images=[channels_first(picture) for picture in pictures], return_tensors="pt")
    pixels, grids = pack([preprocess_image(picture, limits) for picture in pictures])
    assert [(grid.t, grid.h, grid.w) for grid in grids] == [tuple(grid) for grid in expected["image_grid_thw"].tolist()]
    assert torch.equal(pixels, expected["pixel_values"])


def test_sizes_of_all_shapes_are_those_of_transformers():
    image_processor, _ = processors()
    sides = [[1, 20_000], [20_000, 1], [7168, 7168], *np.random.default_rng(0).integers(1, 12_000, (300, 2)).tolist()]
    limits = MediaLimits()
    for height, width in sides:
        size = fit(height, width, max_patches=limits.image_patches)
        patches = (size.padded_height // 14) * (size.padded_width // 14)
        assert patches == image_processor.get_number_of_image_patches(height, width), (height, width)


def test_a_picture_is_padded_with_black_and_cut_row_by_row():
    picture = np.full((20, 30, 3), 255, dtype=np.uint8)
    picture[:14, :14] = (0, 51, 102)
    media = preprocess_image(picture)
    assert media.grid == Grid(1, 2, 4) and media.grid.patches == 8 and media.grid.tokens() == 2
    first, second, bottom, outside = (media.pixels_PCSS[i] for i in (0, 1, 4, 3))
    torch.testing.assert_close(first[:, 3, 5], torch.tensor([0, 51, 102]) / 127.5 - 1)
    assert bool((second == 1).all()) and bool((outside == -1).all())
    assert bool((bottom[:, :6] == 1).all()) and bool((bottom[:, 6:] == -1).all())


def test_shrinking_differs_from_pillow_by_one_level_at_most():
    image = pytest.importorskip("PIL.Image", reason="pictures: pip install -e '.[vision]'")
    picture = noise(300, 211)
    limits = MediaLimits(image_patches=80)
    size = fit(300, 211, max_patches=80)
    assert (size.height, size.width) == (151, 106)
    by_pillow = image.fromarray(picture).resize((size.width, size.height), image.Resampling.BICUBIC)
    media = preprocess_image(picture, limits)
    rows = media.pixels_PCSS.view(media.grid.h, media.grid.w, 3, 14, 14).permute(0, 3, 1, 4, 2)
    whole = rows.reshape(size.padded_height, size.padded_width, 3)[: size.height, : size.width]
    levels = (whole * 127.5 + 127.5).round().int().numpy()
    off = np.abs(levels - np.asarray(by_pillow).astype(int))
    assert off.max() <= 1 and (off > 0).mean() < 0.02


def test_pillow_pictures_of_any_mode_are_read_as_rgb():
    image = pytest.importorskip("PIL.Image", reason="pictures: pip install -e '.[vision]'")
    picture = image.fromarray(noise(20, 30))
    expected = preprocess_image(np.asarray(picture)).pixels_PCSS
    transparent = picture.copy()
    transparent.putalpha(7)
    assert torch.equal(preprocess_image(transparent).pixels_PCSS, expected)
    grey = preprocess_image(picture.convert("L")).pixels_PCSS
    assert torch.equal(grey[:, 0], grey[:, 2])
    file = io.BytesIO()
    exif = image.Exif()
    exif[0x0112] = 6  # orientation: the camera was turned by a quarter
    picture.save(file, format="png", exif=exif)
    assert np.array_equal(np.asarray(open_image(file.getvalue())), np.rot90(np.asarray(picture), -1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: preprocess_image(np.zeros((4, 4, 3))), "dtype float64"),
        (lambda: preprocess_image(np.zeros((4, 4), dtype=np.uint8)), r"shape \(4, 4\)"),
        (lambda: pack([]), "items is empty"),
        (lambda: fit(0, 3, max_patches=4), "both sides must be positive"),
        (lambda: MediaLimits(side_patches=9), "side_patches=9 must be a multiple of merge_size=2"),
    ],
)
def test_what_is_no_picture_is_told(call: Any, message: str):
    with pytest.raises(ValueError, match=message):
        call()


PAD = 9


def test_features_replace_the_placeholders_in_order_and_gradients_go_to_both():
    tokens = torch.tensor([[1, PAD, PAD, 2], [PAD, 3, 4, PAD]])
    embeddings = torch.randn(2, 4, 5, requires_grad=True)
    features = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    merged = merge_media(embeddings, tokens, features, placeholder=PAD)
    places = [(0, 1), (0, 2), (1, 0), (1, 3)]
    for row, (b, t) in enumerate(places):
        assert torch.equal(merged[b, t], features[row].float())
    kept = tokens != PAD
    assert torch.equal(merged[kept], embeddings[kept])
    weight = torch.randn(2, 4, 5)
    (merged * weight).sum().backward()
    assert embeddings.grad is not None and features.grad is not None
    assert torch.equal(embeddings.grad, weight * kept[..., None])
    assert torch.equal(features.grad.float(), torch.stack([weight[place] for place in places]))


def test_counts_and_widths_that_differ_are_told():
    tokens, embeddings = torch.tensor([[1, PAD, 2]]), torch.zeros(1, 3, 4)
    with pytest.raises(ValueError, match=r"1 placeholders \(id 9\) but features has 2 rows: expand"):
        merge_media(embeddings, tokens, torch.zeros(2, 4), placeholder=PAD)
    with pytest.raises(ValueError, match="embeddings of width 4: set VisionConfig"):
        merge_media(embeddings, tokens, torch.zeros(1, 5), placeholder=PAD)
    with pytest.raises(ValueError, match="rows and positions must be the same"):
        merge_media(embeddings[:, :2], tokens, torch.zeros(1, 4), placeholder=PAD)


def test_an_item_tells_how_many_tokens_it_takes():
    chunk = Media(pixels_PCSS=torch.zeros(48, 3, 14, 14), grid=Grid(3, 4, 4))
    assert chunk.grid.patches == 48 and chunk.grid.tokens() == 4 and chunk.grid.tokens((4, 2)) == 2
