"""Names of the generated world: two syllables, split by a stable hash of the pair.

Splits share no name, yet every syllable occurs in each of them: a small model that copies known tokens can
copy a name that it has never seen.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from functools import lru_cache
from random import Random

SPLITS = ("train", "val", "test")
_SHARES = (0.70, 0.85, 1.00)  # upper bounds of the hash value, in the order of SPLITS
_CONSONANTS = "BCDFGHJKLMNPRSTVWZ"
_VOWELS = "aeiou"


def _syllables() -> tuple[tuple[str, ...], tuple[str, ...]]:
    pairs = list(itertools.product(_CONSONANTS, _VOWELS))
    firsts = tuple(c + v + "rlnsmtk"[i % 7] for i, (c, v) in enumerate(pairs))
    seconds = tuple(v + c.lower() + "aoieu"[(i + i // 5) % 5] for i, (c, v) in enumerate(pairs))
    return firsts, seconds


FIRSTS, SECONDS = _syllables()  # 90 each: 'Bar', 'Bel', ... and 'aba', 'ebo', ...


def check_split(split: str) -> str:
    """``split`` itself; ValueError unless it is train, val or test."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    return split


def split_of(name: str) -> str:
    """The split that owns ``name`` (the same in every process and for every world seed)."""
    value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") / 2**32
    return next(split for split, bound in zip(SPLITS, _SHARES, strict=True) if value < bound)


@lru_cache(maxsize=len(SPLITS))
def names_of_split(split: str) -> tuple[str, ...]:
    """All two-syllable names of ``split``."""
    return tuple(a + b for a in FIRSTS for b in SECONDS if split_of(a + b) == check_split(split))


def draw_names(split: str, rng: Random) -> Iterator[str]:
    """Distinct names of ``split`` in random order; three syllables once those of two are used up."""
    names = list(names_of_split(split))
    rng.shuffle(names)
    yield from names
    for parts in itertools.product(FIRSTS, SECONDS, SECONDS):
        name = "".join(parts)
        if split_of(name) == split:
            yield name
    raise ValueError(f"envs.config.entities: split {split} has no more names for so many entities; lower it")
