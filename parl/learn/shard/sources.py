"""Where a rank's share of weights and states comes from: ranges of flattened tensors, by name."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from model.arrays import to_tensor
from model.decoder import Weights
from model.policy_read import SINGLE


class Pieces(Protocol):
    """A source of state; ``shapes`` are those of the whole tensors."""

    shapes: dict[str, tuple[int, ...]]

    def range(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start`` to ``stop`` of the flattened ``name``."""
        ...


class Arrays:
    """Weights in memory."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.shapes = {name: tuple(array.shape) for name, array in weights.items()}

    def range(self, name: str, start: int, stop: int) -> Tensor:
        """See :class:`Pieces`; shares the array's memory."""
        return to_tensor(self._weights[name].reshape(-1)[start:stop])


class Stored:
    """A run's policy folder. Only the rows (experts of a stack) that hold what is asked for are read.

    ``dtype``: of the policy's parameters, to which they are rounded as if it had been loaded whole; ``exact``: what is
    no parameter.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, exact: Collection[str]) -> None:
        self._file = safe_open(folder / SINGLE, framework="pt")
        self._dtype, self._exact = dtype, exact
        self.shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def range(self, name: str, start: int, stop: int) -> Tensor:
        """See :class:`Pieces`."""
        row = math.prod(self.shapes[name][1:])
        first, last = start // row, -(-stop // row)
        rows = self._file.get_slice(name)[first:last].reshape(-1) if self.shapes[name] else self._file.get_tensor(name)
        values = rows.reshape(-1)[start - first * row : stop - first * row]
        return values if name in self._exact else values.to(self._dtype)
