"""The size of a shrunk picture and its number of tokens, from the header alone. No torch.

Source: the preprocessor published with Kimi K2.5.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from model.kimi.vision.config import Grid, MediaLimits

K25_LIMITS = MediaLimits()
MOST_PIXELS = 2**26  # 8192 x 8192; larger pictures would be shrunk to a fraction anyway
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Sizes in pixels: after shrinking, and after padding to whole tokens."""

    height: int
    width: int
    padded_height: int
    padded_width: int


def fit(height: int, width: int, *, max_patches: int, limits: MediaLimits = K25_LIMITS) -> Fit:
    """The size of a picture after shrinking. ``max_patches``: whole patches before padding, as in K2.5."""
    if height < 1 or width < 1:
        raise ValueError(f"picture of {height} x {width} pixels: both sides must be positive")
    patch, longest = limits.patch_size, limits.side_patches * limits.patch_size
    patches = max(1, height // patch) * max(1, width // patch)
    scale = min(1.0, math.sqrt(max_patches / patches), longest / height, longest / width)
    new_height, new_width = (min(longest, max(1, int(side * scale))) for side in (height, width))
    token = limits.merge_size * patch
    return Fit(
        height=new_height,
        width=new_width,
        padded_height=math.ceil(new_height / token) * token,
        padded_width=math.ceil(new_width / token) * token,
    )


def picture_tokens(png: bytes, limits: MediaLimits = K25_LIMITS) -> int:
    """Positions of a picture in the language model; ValueError if it is not a PNG file."""
    height, width = png_size(png)
    size = fit(height, width, max_patches=limits.image_patches, limits=limits)
    grid = Grid(1, size.padded_height // limits.patch_size, size.padded_width // limits.patch_size)
    return grid.tokens((limits.merge_size, limits.merge_size))


def png_size(png: bytes) -> tuple[int, int]:
    """(height, width) from the header of a PNG file; ValueError for other bytes."""
    if len(png) < 24 or png[:8] != _PNG or png[12:16] != b"IHDR":
        raise ValueError(f"a picture of {len(png)} bytes is no PNG file: tools show PNG only")
    width, height = struct.unpack(">II", png[16:24])
    check_size(height, width)
    return height, width


def check_size(height: int, width: int) -> None:
    """ValueError for a picture too large to decode: its header may claim any size."""
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise ValueError(f"a picture of {height} x {width} pixels: it must have some, and at most {MOST_PIXELS:,}")
