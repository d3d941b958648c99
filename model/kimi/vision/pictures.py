"""How the family cuts pictures, see :class:`model.family.Pictures`. Imports torch only for batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.kimi.vision.config import MediaLimits
from model.kimi.vision.picture_size import picture_tokens


@dataclass(frozen=True, slots=True)
class KimiPictures:
    """With ``limits``."""

    limits: MediaLimits

    def tokens(self, png: bytes) -> int:
        """Number of tokens of the picture. ValueError if it is not a PNG."""
        return picture_tokens(png, self.limits)

    def batch(self, pngs: Sequence[bytes], places_BT: Any) -> Any:
        """The pictures as a :class:`model.kimi.vision.media.MediaBatch`, at ``places_BT``."""
        from model.kimi.vision.media import MediaBatch, picture

        return MediaBatch.of([picture(png, self.limits) for png in pngs], places_BT)
