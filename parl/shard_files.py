"""Pieces of the learner's state on disk, one file a rank, read by any number of ranks."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor

from parl.shards import Piece


def write_pieces(folder: Path, rank: int, pieces: list[Piece]) -> None:
    """The pieces of ``rank`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save([(p.name, p.shape, p.start, p.values.cpu().clone()) for p in pieces], folder / f"rank-{rank:05d}.pt")


class PiecesReader:
    """The pieces of all ranks in ``folder``; FileNotFoundError when there are none. Files are mapped, not read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._pieces: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        files = sorted(folder.glob("rank-*.pt"))
        if not files:
            raise FileNotFoundError(f"no checkpoint in {folder}")
        for file in files:
            for name, shape, start, values in torch.load(file, mmap=True):
                self.shapes[name] = tuple(shape)
                self._pieces[name].append((start, values))

    def range(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start`` to ``stop`` of the flattened ``name``; ValueError where no rank wrote them."""
        found, at = [], start
        for first, values in sorted(self._pieces[name], key=lambda piece: piece[0]):
            last = min(first + len(values), stop)
            if first <= at < last:
                found.append(values[at - first : last - first])
                at = last
        if at < stop:
            raise ValueError(f"{self.folder}: elements {at} to {stop} of {name} are in no file")
        return torch.cat(found)
