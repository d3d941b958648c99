"""What is known of pictures whoever looks at them. No torch."""

from __future__ import annotations

import hashlib


def content_key(png: bytes) -> int:
    """64 bits that two pictures share only if they are the same file."""
    return int.from_bytes(hashlib.blake2b(png, digest_size=8).digest(), "little")
