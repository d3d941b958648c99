"""Reads GGUF files: metadata and tensors of a quantized checkpoint. No torch.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3, little-endian). Supported tensor
types: F32, F16, Q4_1 and Q8_0.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_BLOCK = 32  # weights that share a scale
_BYTES = {0: (1, 4), 1: (1, 2), 3: (_BLOCK, 20), 8: (_BLOCK, 34)}  # type -> weights of a block, its bytes


class Gguf:
    """One file. ``metadata``: its keys and values; ``shapes``: by tensor its shape, outermost dimension first."""

    def __init__(self, path: Path) -> None:
        """ValueError unless ``path`` is a complete GGUF file of version 3."""
        self._bytes = np.memmap(path, np.uint8, "r")
        self._path, self._at = path, 4
        if self._bytes[:4].tobytes() != b"GGUF" or self._scalar("I") != 3:
            raise ValueError(f"{path} is no GGUF file of version 3")
        tensors, keys = self._scalar("Q"), self._scalar("Q")
        self.metadata: dict[str, Any] = {self._string(): self._value(self._scalar("I")) for _ in range(keys)}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._places: dict[str, tuple[int, int]] = {}  # type, offset
        for _ in range(tensors):
            name = self._string()
            sizes = [self._scalar("Q") for _ in range(self._scalar("I"))]
            self.shapes[name] = tuple(reversed(sizes))
            self._places[name] = self._scalar("I"), self._scalar("Q")
        step = self.metadata.get("general.alignment", 32)
        self._data = -(-self._at // step) * step

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Name and float32 values of every tensor; ValueError for an unknown type or a truncated file."""
        for name, (kind, offset) in self._places.items():
            if kind not in _BYTES:
                raise ValueError(f"{self._path}: {name} is of the GGUF type {kind}; known are {sorted(_BYTES)}")
            weights, size = _BYTES[kind]
            shape = self.shapes[name]
            begin = self._data + offset
            end = begin + int(np.prod(shape)) // weights * size
            if end > len(self._bytes):
                raise ValueError(f"{self._path} is cut off: {name} ends at byte {end} of {len(self._bytes)}")
            yield name, _values(kind, np.array(self._bytes[begin:end])).reshape(shape)

    def _scalar(self, code: str) -> Any:
        size = struct.calcsize(f"<{code}")
        raw = self._bytes[self._at : self._at + size].tobytes()
        if len(raw) < size:
            raise ValueError(f"{self._path} is cut off at byte {len(self._bytes)}")
        self._at += size
        return struct.unpack(f"<{code}", raw)[0]

    def _string(self) -> str:
        length = self._scalar("Q")
        self._at += length
        return self._bytes[self._at - length : self._at].tobytes().decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            inner, count = self._scalar("I"), self._scalar("Q")
            return [self._value(inner) for _ in range(count)]
        return self._scalar(_SCALARS[kind])


def _values(kind: int, raw: np.ndarray) -> np.ndarray:
    """The float32 weights of bytes of one type. Q8_0: scale · q; Q4_1: scale · q + least, low halves of bytes first."""
    if kind < 2:
        return raw.view(np.float16 if kind else np.float32).astype(np.float32)
    blocks = raw.reshape(-1, _BYTES[kind][1])
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == 8:
        return (blocks[:, 2:].view(np.int8) * scale).ravel()
    least = blocks[:, 2:4].copy().view(np.float16).astype(np.float32)
    halves = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
    return (halves * scale + least).ravel()
