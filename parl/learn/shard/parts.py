"""The learner's state on disk: parts, one per rank, that any number of ranks can read.

A part is a safetensors file of pieces. A piece is a range of a flattened tensor: all of it, a rank's range
under ZeRO, or some experts of a stack. A reader asks for tensors or ranges and need not know the ranks that
wrote them. The header says how many parts belong together.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from model.files import file_digest

_CHUNK = 16 * 2**20  # bytes written and hashed at a time
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}


@dataclass(slots=True)
class Piece:
    """``values``, flat [n], are the elements ``start`` to ``start`` + n of the tensor ``name``, which has ``shape``."""

    name: str
    shape: tuple[int, ...]
    start: int
    values: Tensor

    @classmethod
    def whole(cls, name: str, tensor: Tensor) -> Piece:
        """All of ``tensor``."""
        return cls(name, tuple(tensor.shape), 0, tensor.detach().reshape(-1))

    def copy(self) -> Piece:
        """The same in host memory of its own."""
        values = torch.empty(self.values.shape, dtype=self.values.dtype)
        return Piece(self.name, self.shape, self.start, values.copy_(self.values))


@dataclass(slots=True, kw_only=True)
class Part:
    """A manifest's entry of a part's file."""

    file: str
    bytes: int
    sha256: str


def part_name(rank: int) -> str:
    """The file that ``rank`` writes."""
    return f"part-{rank:05d}.safetensors"


def write_part(folder: Path, rank: int, ranks: int, pieces: Sequence[Piece]) -> Part:
    """Write and flush the part of ``rank``; OSError if the disk is full. Copies nothing in memory."""
    shapes = {piece.name: list(piece.shape) for piece in pieces}
    header: dict[str, object] = {"__metadata__": {"ranks": str(ranks), "shapes": json.dumps(shapes)}}
    end = 0
    for piece in pieces:
        begin, end = end, end + piece.values.nbytes
        entry = {"dtype": _DTYPES[piece.values.dtype], "shape": [len(piece.values)], "data_offsets": [begin, end]}
        header[f"{piece.name}@{piece.start}"] = entry
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, path = hashlib.sha256(), folder / part_name(rank)
    with path.open("wb", buffering=0) as file:
        for data in (len(text).to_bytes(8, "little") + text, *(_bytes(piece.values) for piece in pieces)):
            view = memoryview(data)
            for place in range(0, len(view), _CHUNK):
                chunk = view[place : place + _CHUNK]
                digest.update(chunk)
                while len(chunk):  # an unbuffered write may write less than asked
                    chunk = chunk[file.write(chunk) :]
        os.fsync(file.fileno())
    return Part(file=path.name, bytes=8 + len(text) + end, sha256=digest.hexdigest())


def _bytes(values: Tensor) -> memoryview:
    return memoryview(values.contiguous().view(torch.uint8).numpy())  # type: ignore[arg-type]


def damage(folder: Path, part: Part) -> str | None:
    """What is wrong with the file of ``part``, or None."""
    path = folder / part.file
    if not path.exists():
        return f"{part.file} is missing"
    if path.stat().st_size != part.bytes:
        return f"{part.file} has {path.stat().st_size} bytes, not {part.bytes}"
    return None if file_digest(path) == part.sha256 else f"{part.file} has other bytes than were written (sha256)"


class PartsReader:
    """The parts in ``folder`` as whole tensors. FileNotFoundError: none, ValueError: some are missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files = sorted(folder.glob("part-*.safetensors"))
        if not files:
            raise FileNotFoundError(f"no checkpoint in {folder}")
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, list[tuple[int, Path, str]]] = defaultdict(list)  # (start, file, key)
        for path in files:
            with safe_open(path, framework="pt") as part:
                about = part.metadata()
                if int(about["ranks"]) != len(files):
                    raise ValueError(f"{folder} has {len(files)} of {about['ranks']} parts")
                self.shapes |= {name: tuple(shape) for name, shape in json.loads(about["shapes"]).items()}
                for key in part.keys():  # noqa: SIM118
                    name, _, start = key.rpartition("@")
                    self._places[name].append((int(start), path, key))

    def names(self) -> list[str]:
        """Every tensor, in order."""
        return sorted(self.shapes)

    def read(self, name: str) -> Tensor:
        """The tensor ``name``, whole; KeyError if it is missing."""
        return self.range(name, 0, math.prod(self.shapes[name])).view(self.shapes[name])

    def range(self, name: str, start: int, stop: int) -> Tensor:
        """Elements ``start`` to ``stop`` of the flattened ``name``: [stop - start]; reads only these."""
        found, at = [], start
        for first, path, key in sorted(self._places[name]):
            if first > at or (at >= stop and found):
                break
            with safe_open(path, framework="pt") as part:
                piece = part.get_slice(key)
                last = min(first + piece.get_shape()[0], stop)
                if last > at or start == stop:
                    found.append(piece[at - first : max(last, at) - first])  # an empty range still gives the dtype
                    at = max(last, at)
        if at < stop:
            raise ValueError(f"{self.folder}: elements {at} to {stop} of {name} are in no part")
        return torch.cat(found)
