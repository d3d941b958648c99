"""Tile sizes of the expert kernels, and the settings that measurements change.

Tiles depend on dtype and device only, never on the number of tokens, so a row's sum has the same order alone and among
thousands.
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
    """``exact_sums``: sum a token's expert outputs in float32, not in x's dtype.

    ``spread``: the backward pass copies rows for the copy engine. ``descriptors``: load weights and sorted rows
    by Hopper's copy engine; None decides by device and alignment. ``tiles`` replaces a kernel's tile sizes by
    name, for tuning.
    """

    exact_sums: bool = False
    spread: bool = True
    descriptors: bool | None = None
    tiles: dict[str, Tiles] | None = None


@dataclass(frozen=True, slots=True)
class Tiles:
    """One program's tile: ``rows`` x ``columns`` of the result, ``depth`` of the contraction at a time.

    ``band`` row tiles share a matrix's tile in L2. ``flatten``: the next tile's loads start in this one's epilogue.
    """

    rows: int
    columns: int
    depth: int
    warps: int = 8
    stages: int = 4
    band: int = 8
    flatten: bool = False

    def constants(self) -> dict[str, int]:
        """The launch's compile-time values."""
        return {
            "BM": self.rows,
            "BN": self.columns,
            "BK": self.depth,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


# Bounded by registers: 128 x 256 float32 sums are half of what 256 threads have. ``up`` has two sums of half
# the width. Chosen among 35 by time on an H200 (docs/notes/gpu.md).
_SIXTEEN = {
    "up": Tiles(128, 128, 64),
    "down": Tiles(128, 256, 64, stages=3, flatten=True),
    "dact": Tiles(128, 256, 64, stages=3),
    "dx": Tiles(128, 256, 64, stages=3, flatten=True),
    "dw": Tiles(128, 256, 64, stages=3),
}
_THIRTY_TWO = dict.fromkeys(_SIXTEEN, Tiles(64, 64, 32, warps=4, stages=3))  # no matrix unit multiplies these exactly
_THIRTY_TWO |= {"up": Tiles(64, 32, 32, warps=4, stages=3)}
_INTERPRETED = dict.fromkeys(_SIXTEEN, Tiles(16, 32, 32, flatten=True))  # several tiles even for small test shapes

_current = Settings()


def current() -> Settings:
    """The current settings."""
    return _current


@contextmanager
def using(**changes: object) -> Iterator[Settings]:
    """Change settings inside the block; a backward pass must see those of its forward pass."""
    global _current
    before, _current = _current, replace(_current, **changes)
    try:
        yield _current
    finally:
        _current = before


def tiles_for(kernel: str, x: Tensor) -> Tiles:
    """The tiles of ``kernel`` for ``x``'s dtype and device, as deep a pipeline as its shared memory allows."""
    table = _INTERPRETED if INTERPRETED else _SIXTEEN if x.dtype.itemsize == 2 else _THIRTY_TWO
    chosen = (table | (_current.tiles or {}))[kernel]
    operands = chosen.rows + chosen.columns * (2 if kernel == "up" else 1)
    stage_bytes = operands * chosen.depth * x.dtype.itemsize
    return replace(chosen, stages=max(1, min(chosen.stages, (_shared_bytes(x) - 1024) // stage_bytes)))


def _shared_bytes(x: Tensor) -> int:
    if not x.is_cuda:
        return 232448  # an H100's and H200's
    return torch.cuda.get_device_properties(x.device).shared_memory_per_block_optin


def descriptors_for(*tensors: Tensor) -> bool:
    """Whether matrices and sorted rows use tensor descriptors: Hopper or newer, 16 bits, aligned rows."""
    if _current.descriptors is not None:
        return _current.descriptors
    x = tensors[0]
    if not x.is_cuda or torch.cuda.get_device_capability(x.device)[0] < 9 or x.dtype.itemsize != 2:
        return False
    return all(t.shape[-1] % 8 == 0 and t.data_ptr() % 16 == 0 for t in tensors)


def spread_for(descriptors: bool, x: Tensor) -> bool:
    """Whether the backward pass first copies rows to their experts' places for the copy engine."""
    return descriptors and _current.spread and x.shape[1] % tiles_for("dact", x).depth == 0


def staging(x: Tensor) -> torch.dtype:
    """The dtype of each assignment's output before the sum over a token's experts."""
    return torch.float32 if _current.exact_sums else x.dtype


def row_tiles(assignments: int, experts: int, rows: int) -> int:
    """Upper bound on row tiles: each expert's last one may be partly empty."""
    return assignments // rows + min(experts, assignments)
