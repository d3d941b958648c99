"""The vision tower for an inference engine: a PNG file in, its feature rows out, cached by content.

Each picture is encoded separately on one thread, so its rows have the same bits whatever else is requested
and however many threads the process has.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch

from model.arrays import fill
from model.kimi.vision.config import VisionConfig
from model.kimi.vision.media import pack, picture
from model.kimi.vision.tower import VisionModel
from model.pictures import content_key

PREFIX = "vision."  # of its weights in a policy
_KEPT_BYTES = 256 * 2**20


class PictureEncoder:
    """Features of pictures under the current weights; caches up to 256 MiB, oldest dropped first."""

    def __init__(self, config: VisionConfig) -> None:
        self.config = config
        self.encoded = 0  # pictures encoded
        self._model = VisionModel(config).eval().requires_grad_(False)
        self._kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Take the vision weights of a policy; clears the cache."""
        own = {name: array for name, array in weights.items() if name.startswith(PREFIX)}
        fill(self._model, {name.removeprefix(PREFIX): array for name, array in own.items()})
        self._kept.clear()
        self._bytes = 0

    def rows(self, png: bytes) -> np.ndarray:
        """Features of one picture, float32 [M, E]. ValueError if they are not finite."""
        key = content_key(png)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        rows = self._encode(png)
        self._kept[key] = rows
        self._bytes += rows.nbytes
        while self._bytes > _KEPT_BYTES and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return rows

    @torch.no_grad()
    def _encode(self, png: bytes) -> np.ndarray:
        self.encoded += 1
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            rows = self._model(*pack([picture(png, self.config.limits)])).numpy()
        finally:
            torch.set_num_threads(threads)
        if not np.isfinite(rows).all():
            raise ValueError("the vision side produced a NaN or infinite feature")
        return rows
