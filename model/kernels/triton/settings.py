"""Tile sizes of the expert kernels, and the two settings that choose between exactness and speed.

The default is batch-invariant and deterministic: tiles depend on dtype and device only, never on the number of tokens,
so each row's sum runs in the same order alone and among thousands. ``fast`` gives that up, see :class:`Settings`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.kernels.triton.common import INTERPRETED


@dataclass(frozen=True, slots=True)
class Settings:
    """``fast``: small row tiles where experts have few rows, and expert outputs staged in x's dtype instead of float32.

    ``descriptors``: weights and sorted rows through Hopper's copy engine; None decides by device and alignment.
    ``tiles`` replaces the tile sizes of a kernel by name, for tuning.
    """

    fast: bool = False
    descriptors: bool | None = None
    tiles: dict[str, Tiles] | None = None


@dataclass(frozen=True, slots=True)
class Tiles:
    """One program's tile: ``rows`` x ``columns`` of the result, ``depth`` of the contraction at a time."""

    rows: int
    columns: int
    depth: int
    warps: int = 8
    stages: int = 4

    def constants(self) -> dict[str, int]:
        """The launch's compile-time values."""
        return {
            "BM": self.rows,
            "BN": self.columns,
            "BK": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


# Registers bound them: 128 x 256 float32 sums are half of what 256 threads have. ``up`` has two sums of half the width.
_SIXTEEN = {
    "up": Tiles(128, 128, 64),
    "down": Tiles(128, 256, 64, stages=3),
    "dact": Tiles(128, 128, 64),
    "dx": Tiles(128, 256, 64, stages=3),
    "dw": Tiles(128, 256, 64, stages=5),  # the indirection through the rows halves their use
}
_THIRTY_TWO = dict.fromkeys(_SIXTEEN, Tiles(64, 64, 32, warps=4, stages=3))  # no matrix unit multiplies these exactly
_THIRTY_TWO |= {"up": Tiles(64, 32, 32, warps=4, stages=3)}
_INTERPRETED = dict.fromkeys(_SIXTEEN, Tiles(16, 32, 32))  # several tiles even for a test's small shapes
_FAST_ROWS = ((16, 16), (48, 32), (96, 64))  # up to so many rows an expert, tiles of so many rows

_current = Settings()


def current() -> Settings:
    """The settings in force."""
    return _current


@contextmanager
def using(**changes: object) -> Iterator[Settings]:
    """Other settings inside; a backward pass must see those of its forward pass."""
    global _current
    before, _current = _current, replace(_current, **changes)
    yield _current
    _current = before


def tiles_for(kernel: str, x: Tensor, rows_per_expert: float) -> Tiles:
    """The tiles of ``kernel`` for ``x``'s dtype and device, as deep a pipeline as its shared memory allows."""
    chosen = (_current.tiles or {}).get(kernel)
    if chosen is None:
        chosen = (_INTERPRETED if INTERPRETED else _SIXTEEN if x.dtype.itemsize == 2 else _THIRTY_TWO)[kernel]
        if _current.fast and kernel != "dw":
            chosen = replace(chosen, rows=next((r for limit, r in _FAST_ROWS if rows_per_expert <= limit), chosen.rows))
    operands = chosen.rows + chosen.columns * (2 if kernel == "up" else 1)
    stage_bytes = operands * chosen.depth * x.dtype.itemsize
    fitting = max(1, (_shared_bytes(x) - 1024) // stage_bytes) * (2 if kernel == "dw" else 1)
    return replace(chosen, stages=min(chosen.stages, fitting))


def _shared_bytes(x: Tensor) -> int:
    if not x.is_cuda:
        return 232448  # an H100's and H200's
    return torch.cuda.get_device_properties(x.device).shared_memory_per_block_optin


def descriptors_for(*tensors: Tensor) -> bool:
    """Whether matrices and sorted rows come through tensor descriptors: Hopper or newer, 16 bits, aligned rows."""
    if _current.descriptors is not None:
        return _current.descriptors
    x = tensors[0]
    if not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] < 9 or x.dtype.itemsize != 2:
        return False
    return all(t.shape[-1] % 8 == 0 and t.data_ptr() % 16 == 0 for t in tensors)


def staging(x: Tensor) -> torch.dtype:
    """The dtype in which each assignment's output waits for the sum over a token's experts."""
    return x.dtype if _current.fast else torch.float32


def row_tiles(assignments: int, experts: int, rows: int) -> int:
    """Row tiles at most: each expert's last one may be partly empty."""
    return assignments // rows + min(experts, assignments)
