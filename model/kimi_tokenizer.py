"""Kimi's own vocabulary, read from the model's ``tiktoken.model`` and ``tokenizer_config.json`` (extra: ``kimi``).

The same interface as :class:`model.tokenizer.Tokenizer`, and the same rule: ``encode`` never yields control ids. The
split pattern, the 256 special slots and the cutting of very long texts are those of the official tokenizer.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.chat import SPECIAL_TOKENS
from model.tokenizer import Tokenizer

_SLOTS = 256  # special ids after the learned ones
_MAX_CHARS = 400_000
_MAX_RUN = 25_000  # characters in a row that are all whitespace, or all not
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
PATTERN = "|".join(
    (
        r"[\p{Han}]+",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)


class KimiTokenizer(Tokenizer):
    """The 163,840 ids of Kimi K2 and K2.5."""

    def __init__(self, folder: str | Path) -> None:
        """Read ``tiktoken.model`` and ``tokenizer_config.json`` of ``folder``."""
        self.folder = Path(folder)
        ranks = _read_ranks(self.folder / "tiktoken.model")
        self.special = _read_special(self.folder / "tokenizer_config.json", len(ranks))
        self._core = _core(ranks, self.special)
        self.vocab_size = len(ranks) + _SLOTS
        self._names = {index: name for name, index in self.special.items()}
        by_id = {index: token for token, index in ranks.items()}
        self._bytes = [by_id[index] for index in range(len(ranks))]
        self._bytes += [self._names[index].encode() for index in range(len(ranks), self.vocab_size)]
        self._cached = lru_cache(maxsize=8192)(self._encode)

    def encode_special(self, text: str) -> list[int]:
        """Ids of trusted ``text`` whose control strings count as control tokens (the official default)."""
        return [index for part in _parts(text) for index in self._core.encode(part, allowed_special="all")]

    def _encode(self, text: str) -> tuple[int, ...]:
        encode = self._core.encode_ordinary
        return tuple(index for part in _parts(text) for index in encode(part))

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the vocabulary, the special tokens and the split pattern."""
        digest = hashlib.sha256(PATTERN.encode())
        digest.update(json.dumps(self.special, sort_keys=True).encode())
        digest.update((self.folder / "tiktoken.model").read_bytes())
        return digest.hexdigest()[:16]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its folder."""
        return KimiTokenizer, (self.folder,)

    def save(self, path: str | Path) -> Path:
        """Copy the two files into the folder ``path``."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        for name in ("tiktoken.model", "tokenizer_config.json"):
            (path / name).write_bytes((self.folder / name).read_bytes())
        return path

    @classmethod
    def load(cls, path: str | Path) -> KimiTokenizer:
        """Read the folder ``path``."""
        return cls(path)


def _core(ranks: dict[bytes, int], special: dict[str, int]) -> Any:
    try:
        import tiktoken  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Kimi's vocabulary needs tiktoken: pip install 'parl[kimi]'") from error
    return tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def _read_ranks(path: Path) -> dict[bytes, int]:
    if not path.is_file():
        raise FileNotFoundError(f"no Kimi vocabulary at {path}")
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    try:
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
    except ValueError as error:
        raise ValueError(f"{path} is not a tiktoken vocabulary: {error}") from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path}: ranks must run from 0 to {len(ranks) - 1} without gaps")
    return ranks


def _read_special(path: Path, first: int) -> dict[str, int]:
    if not path.is_file():
        raise FileNotFoundError(f"no names of special tokens at {path}")
    added = json.loads(path.read_text(encoding="utf-8"))["added_tokens_decoder"]
    named = {int(index): entry["content"] for index, entry in added.items()}
    special = {named.get(i, f"<|reserved_token_{i}|>"): i for i in range(first, first + _SLOTS)}
    missing = [name for name in SPECIAL_TOKENS if name not in special]
    if missing:
        raise ValueError(f"{path} lacks the control tokens {', '.join(missing)}")
    return special


def _parts(text: str) -> Iterator[str]:
    """``text`` in the pieces that the official tokenizer encodes one by one."""
    for start in range(0, len(text), _MAX_CHARS):
        yield from _runs(text[start : start + _MAX_CHARS])


def _runs(text: str) -> Iterator[str]:
    if len(text) <= _MAX_RUN:
        yield text
        return
    begin, length, was_space = 0, 0, text[0].isspace()
    for position, character in enumerate(text):
        is_space = character.isspace()
        length = length + 1 if is_space == was_space else 1
        was_space = is_space
        if length > _MAX_RUN:
            yield text[begin:position]
            begin, length = position, 1
    yield text[begin:]
