"""How pictures are cut for the family's policies, see :class:`model.family.Pictures`. Torch comes with a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from model.kimi.vision.config import MediaLimits
from model.kimi.vision.picture_size import picture_tokens


@dataclass(frozen=True, slots=True)
class KimiPictures:
    """By ``limits``."""

    limits: MediaLimits

    def tokens(self, png: bytes) -> int:
        """How many tokens the picture takes. ValueError for what is no PNG."""
        return picture_tokens(png, self.limits)

    def batch(self, pngs: Sequence[bytes], places_BT: Any) -> Any:
        """The pictures as the policy takes them (:class:`model.kimi.vision.media.MediaBatch`), at ``places_BT``."""
        from model.kimi.vision.media import MediaBatch, picture

        return MediaBatch.of([picture(png, self.limits) for png in pngs], places_BT)
