"""Content-addressed shards of weights: the manifest of a version, deltas between versions, signatures.

A shard is a safetensors file, named by the SHA-256 of its bytes. What changed between two versions of a shard of
equal size is a delta: the positions of changed words, and the words' old value XOR the new one. In bfloat16 a small
learning rate leaves most words as they are. Used by the trainer and inside inference servers: numpy and the standard
library only.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_MAGIC = b"PARLXOR1"
_HEAD = struct.Struct("<8sQQB")  # magic, bytes of the shard, changed words, bytes of a word
_LEVEL = 1  # of zlib: more costs time and saves little
_LARGEST = 0.7  # of the shard: a delta that is larger is not worth it
WORDS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32}


class Corrupt(ValueError):
    """Bytes that are not what their name says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """Bytes to fetch: their SHA-256 in hex, their number, and the signature that admits the request."""

    sha256: str
    size: int
    sign: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One file of a version. ``delta``: turns the shard ``base`` into ``whole``; None: there is no older one."""

    whole: Blob
    delta: Blob | None = None
    base: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All shards of ``version``, and the address (``http``, ``https``, or any of fsspec) that blobs are below."""

    version: int
    where: str
    shards: tuple[Shard, ...]

    def text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Manifest:
        """The inverse of :meth:`text`."""
        tree = json.loads(text)
        shards = []
        for one in tree["shards"]:
            delta = None if one["delta"] is None else Blob(**one["delta"])
            shards.append(Shard(whole=Blob(**one["whole"]), delta=delta, base=one["base"]))
        return cls(version=tree["version"], where=tree["where"], shards=tuple(shards))

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.whole.size for shard in self.shards)


def sha256(data: bytes | memoryview) -> str:
    """In hex."""
    return hashlib.sha256(data).hexdigest()


def signature(key: bytes, name: str) -> str:
    """Admits requests for the blob ``name``; only who has ``key`` can make it, and it says nothing about the key."""
    return hmac.new(key, name.encode(), hashlib.sha256).hexdigest()


def difference(old: bytes, new: bytes, *, word: int) -> bytes | None:
    """The delta from ``old`` to ``new`` in words of ``word`` bytes; None where sending ``new`` is better."""
    if len(old) != len(new) or len(new) % word or len(new) // word >= 2**32:
        return None
    kind = WORDS[word]
    changed: np.ndarray = np.bitwise_xor(np.frombuffer(old, kind), np.frombuffer(new, kind))
    places = np.flatnonzero(changed)
    if len(places) > _LARGEST * len(changed):
        return None
    packed = _pack(np.diff(places, prepend=0).astype("<u4")), _pack(changed[places])
    delta = b"".join([_HEAD.pack(_MAGIC, len(new), len(places), word), struct.pack("<Q", len(packed[0])), *packed])
    return delta if len(delta) < _LARGEST * len(new) else None


def apply(old: bytes, delta: bytes) -> bytes:
    """The shard that ``delta`` makes of ``old``; Corrupt if they do not belong together."""
    try:
        magic, size, count, word = _HEAD.unpack_from(delta)
        (first,) = struct.unpack_from("<Q", delta, _HEAD.size)
        if magic != _MAGIC or size != len(old) or word not in WORDS or count > size:
            raise Corrupt("the delta is another shard's")
        body = memoryview(delta)[_HEAD.size + 8 :]
        gaps = _unpack(body[:first], np.dtype("<u4"), count)
        values = _unpack(body[first:], np.dtype(WORDS[word]), count)
        out = np.frombuffer(old, WORDS[word]).copy()
        out[np.cumsum(gaps.astype(np.int64))] ^= values
    except (struct.error, zlib.error, IndexError, ValueError) as error:
        raise Corrupt(f"the delta cannot be applied: {error}") from None
    return out.tobytes()


def _pack(numbers: np.ndarray) -> bytes:
    """The planes of bytes one after the other, deflated: high bytes are nearly always zero."""
    planes = numbers.view(np.uint8).reshape(len(numbers), numbers.itemsize).T
    return zlib.compress(planes.tobytes(), _LEVEL)


def _unpack(data: memoryview, kind: np.dtype, count: int) -> np.ndarray:
    most = count * kind.itemsize
    unpacker = zlib.decompressobj()
    plain = unpacker.decompress(data, most) if most else b""
    if len(plain) != most:
        raise Corrupt("the delta is cut off")
    planes = np.frombuffer(plain, np.uint8).reshape(kind.itemsize, count)
    return np.ascontiguousarray(planes.T).view(kind).reshape(count)
