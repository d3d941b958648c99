"""Kimi's own files: ``tiktoken.model``, the names of its special tokens, and how its tokenizer cuts long texts."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from model.chat.kimi_tokens import SPECIAL_TOKENS
from model.json_file import read_json

MOST_BYTES = 256 * 2**20  # of a tokenizer's file; the largest published ones have 40 MiB
SLOTS = 256  # special ids after the learned ones
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


def core(ranks: dict[bytes, int], special: dict[str, int]) -> Any:
    """tiktoken's encoding. ModuleNotFoundError where the extra is not installed."""
    try:
        import tiktoken  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Kimi's vocabulary needs tiktoken: pip install tiktoken") from error
    return tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> id of ``tiktoken.model``. FileNotFoundError and ValueError name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no Kimi vocabulary at {path}")
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} is not a tiktoken vocabulary: it has {path.stat().st_size:,} bytes")
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    try:
        pairs = [(base64.b64decode(token, validate=True), int(rank)) for token, rank in lines]
    except ValueError as error:
        raise ValueError(f"{path} is not a tiktoken vocabulary: {error}") from error
    ranks = dict(pairs)
    if len(ranks) != len(pairs):
        raise ValueError(f"{path} is not a tiktoken vocabulary: {len(pairs) - len(ranks)} tokens stand there twice")
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path}: ranks must run from 0 to {len(ranks) - 1} without gaps")
    lacking = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lacking:
        raise ValueError(f"{path} lacks {len(lacking)} of the 256 bytes, e.g. {lacking[0]}: not every text has ids")
    return ranks


def read_special(path: Path, first: int) -> dict[str, int]:
    """Name -> id of the slots that begin at ``first``. FileNotFoundError and ValueError name the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no names of special tokens at {path}")
    added = read_json(path).get("added_tokens_decoder")
    try:
        named = {int(index): entry["content"] for index, entry in added.items()}  # type: ignore[union-attr]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: added_tokens_decoder must give ids their content ({error})") from None
    names = [named.get(i, f"<|reserved_token_{i}|>") for i in range(first, first + SLOTS)]
    wrong = next((name for name in names if not isinstance(name, str) or not name or names.count(name) > 1), None)
    if wrong is not None:
        raise ValueError(f"{path}: {wrong!r} is no name of one special token: each has a text of its own")
    special = {name: first + place for place, name in enumerate(names)}
    missing = [name for name in SPECIAL_TOKENS if name not in special]
    if missing:
        raise ValueError(f"{path} lacks the control tokens {', '.join(missing)}")
    return special


def parts(text: str) -> Iterator[str]:
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
