"""Pictures and video chunks to patches, and their features into the language model's embeddings.

A picture is shrunk (never enlarged) to its limits, padded right and bottom with black to whole tokens,
normalised and cut into patches. ``pack`` packs items for the tower, and ``merge_media`` puts the rows of their
features at the placeholders.

Shapes: P patches, C = 3 colours, S patch side in pixels, B rows, T positions, E hidden size, M media tokens.

Source: the preprocessor published with Kimi K2.5. Pixels and grids equal those of transformers' ``kimi_k25``
to the bit; the published preprocessor shrinks with Pillow, which rounds one byte in some hundred differently.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kimi.vision.config import Grid, MediaLimits
from model.kimi.vision.picture_size import K25_LIMITS, check_size, fit

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """One picture or video chunk, ready for the tower."""

    pixels_PCSS: Tensor
    grid: Grid


# ------------------------------------------------------------------------------------------ pixels


def open_image(source: Path | bytes) -> Any:
    """A Pillow picture in RGB, upright; the first frame of an animation. Needs the extra ``vision``.

    ValueError if it is not a picture, is truncated, or has too many pixels.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ImportError("pictures are opened with Pillow: pip install pillow") from error
    what = f"a picture of {len(source)} bytes" if isinstance(source, bytes) else str(source)
    try:
        # only formats that the library decodes itself: others start programs, or fetch
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
            check_size(image.height, image.width)  # before any pixel is decoded
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise ValueError(f"{what} cannot be read: {error}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{what} is too large to be opened: {error}") from error


def preprocess_image(image: Any, limits: MediaLimits = K25_LIMITS) -> Media:
    """A Pillow picture of any mode, or a uint8 array [height, width, 3], as patches."""
    return _patches(_frame(image)[None], limits.image_patches, limits)


def picture(png: bytes, limits: MediaLimits = K25_LIMITS) -> Media:
    """A PNG file as patches: ``open_image``, then ``preprocess_image``. Cached: do not change the result."""
    return _picture(png, limits)  # pyright: ignore[reportArgumentType] - frozen, so it has a hash


@lru_cache(256)  # the episodes of a group share pictures
def _picture(png: bytes, limits: MediaLimits) -> Media:
    return preprocess_image(open_image(png), limits)


def pack(items: Sequence[Media]) -> tuple[Tensor, list[Grid]]:
    """All items' patches packed [P, C, S, S], and their grids."""
    if not items:
        raise ValueError("items is empty: leave the tower out where a batch has no media")
    return torch.cat([item.pixels_PCSS for item in items]), [item.grid for item in items]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaBatch:
    """The items of a batch of token rows, in order, packed for the tower.

    ``places_BT`` marks the positions of their feature rows; None: wherever the placeholder token is.
    """

    pixels_PCSS: Tensor
    grids: list[Grid]
    places_BT: Tensor | None = None

    @classmethod
    def of(cls, items: Sequence[Media], places_BT: Tensor | None = None) -> MediaBatch:
        """``items`` packed."""
        pixels, grids = pack(items)
        return cls(pixels_PCSS=pixels, grids=grids, places_BT=places_BT)


def _frame(image: Any) -> np.ndarray:
    """uint8 [height, width, 3] of a Pillow picture (without transparency) or of such an array."""
    array = np.asarray(image.convert("RGB") if hasattr(image, "convert") else image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"picture of dtype {array.dtype} and shape {array.shape}: expected uint8 [height, width, 3]"
            " or a Pillow picture"
        )
    return array


def _patches(frames: np.ndarray, max_patches: int, limits: MediaLimits) -> Media:
    """Frames of one size, uint8 [t, height, width, 3], as one item."""
    size = fit(*frames.shape[1:3], max_patches=max_patches, limits=limits)
    x = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    if x.shape[2:] != (size.height, size.width):  # on bytes: clamps and rounds after each axis, like Pillow
        x = F.interpolate(x, (size.height, size.width), mode="bicubic", align_corners=False, antialias=True)
    x = F.pad(x, (0, size.padded_width - size.width, 0, size.padded_height - size.height))
    x = (x.float() - limits.mean * 255) / (limits.std * 255)
    patch = limits.patch_size
    grid = Grid(len(frames), size.padded_height // patch, size.padded_width // patch)
    cut = x.view(grid.t, 3, grid.h, patch, grid.w, patch).permute(0, 2, 4, 1, 3, 5)
    return Media(pixels_PCSS=cut.reshape(grid.patches, 3, patch, patch), grid=grid)


# ------------------------------------------------------------------------------------------ tokens


def merge_media(embeddings_BTE: Tensor, tokens_BT: Tensor, features_ME: Tensor, *, placeholder: int) -> Tensor:
    """Embeddings with ``features_ME`` at the placeholders, batch row by batch row; both get gradients."""
    return place_media(embeddings_BTE, tokens_BT == placeholder, features_ME, what=f"placeholders (id {placeholder})")


def place_media(embeddings_BTE: Tensor, places_BT: Tensor, features_ME: Tensor, *, what: str = "places") -> Tensor:
    """:func:`merge_media` with known positions; the placeholder's token may also occur elsewhere."""
    if embeddings_BTE.shape[:2] != places_BT.shape:
        shapes = f"embeddings {tuple(embeddings_BTE.shape)}, tokens {tuple(places_BT.shape)}"
        raise ValueError(f"{shapes}: rows and positions must be the same; embed these very tokens")
    if features_ME.dim() != 2 or features_ME.shape[1] != embeddings_BTE.shape[2]:
        raise ValueError(
            f"features of shape {tuple(features_ME.shape)} do not fit embeddings of width {embeddings_BTE.shape[2]}:"
            " set VisionConfig.text_hidden_size to the language model's hidden_size"
        )
    found = int(places_BT.sum())
    if found != len(features_ME):
        raise ValueError(
            f"tokens hold {found} {what} but features has {len(features_ME)} rows:"
            " expand each item's placeholder to Grid.tokens() copies"
        )
    return embeddings_BTE.masked_scatter(places_BT[..., None], features_ME.to(embeddings_BTE.dtype))
