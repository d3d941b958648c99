"""Keys of sampling noise, so that no random stream is shared."""

from __future__ import annotations

import hashlib


def noise_key(*parts: object) -> int:
    """64-bit sampling key of (seed, episode, agent): equal parts give equal noise."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "little")
