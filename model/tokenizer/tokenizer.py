"""Text to ids and back: the policy's own byte-level BPE (:mod:`model.tokenizer.bpe` trains it), and Kimi's vocabulary.

Both treat control-token strings inside a text as plain text unless they are told to trust it. What an agent reads
never becomes a control token: transcripts are encoded with ``encode_segments``, which makes control ids of those pieces
only that the chat template marked as control.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from model.chat.base import Piece
from model.chat.kimi_tokens import IM_END, PAD, SPECIAL_TOKENS
from model.files import write_text
from model.json_file import read_json
from model.tokenizer.control_tokens import check_ids, control_ids, probe

_CACHED_CHARS = 4096  # longer texts are not worth remembering
_CONTROL = re.compile("(" + "|".join(map(re.escape, SPECIAL_TOKENS)) + ")")

# Kimi's vocabulary
MOST_BYTES = 256 * 2**20  # of a tokenizer's file; the largest published ones have 40 MiB
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


class Tokenizer:
    """Text to ids and back, exactly: ``decode(encode(text)) == text`` for any text without lone surrogates."""

    def __init__(self, backend: Backend) -> None:
        """Wrap ``backend``; use :func:`train_tokenizer` or :meth:`load` to get one."""
        self.special: dict[str, int] = control_ids(backend)
        backend.encode_special_tokens = True  # control strings inside a text are plain text
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._names = {index: name for name, index in self.special.items()}
        self._bytes = _token_bytes(backend, self._names)
        self._control = frozenset(self._names)
        self._cached = lru_cache(maxsize=8192)(self._encode)
        probe(self._backend_ids, self.special)

    # ---------------------------------------------------------------- text to ids

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of ``text`` as plain text; with ``allow_special``, control-token strings in it become control ids.

        A lone surrogate, which no encoding can carry, is read as U+FFFD.
        """
        if allow_special:
            parts = enumerate(_CONTROL.split(text))
            return self.encode_segments((part, bool(index % 2)) for index, part in parts if part)
        return list(self._cached(text) if len(text) <= _CACHED_CHARS else self._encode(text))

    def encode_segments(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of rendered pieces: control pieces become control ids, all other text is plain.

        Neighbouring plain pieces are joined first, so the ids do not depend on how the template cut its text.
        """
        ids: list[int] = []
        plain = ""
        for text, is_control in pieces:
            if not is_control:
                plain += text
                continue
            if plain:
                ids += self.encode(plain, allow_special=False)
                plain = ""
            ids.append(self.special[text])
        return ids + self.encode(plain, allow_special=False) if plain else ids

    def _encode(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        ids = self._backend_ids(text)
        if not self._control.isdisjoint(ids):  # what the probe did not think of
            found = next(self._names[index] for index in ids if index in self._control)
            raise ValueError(f"the tokenizer reads a plain text of {len(text)} characters as the control token {found}")
        return tuple(ids)

    def _backend_ids(self, text: str) -> list[int]:
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError):  # how the backend refuses a lone surrogate depends on its version
            repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return self._backend.encode(repaired, add_special_tokens=False).ids

    # ---------------------------------------------------------------- ids to text

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ``ids``, control tokens by their names; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of ``ids``."""
        table = self._bytes
        return b"".join([table[index] for index in ids])

    def pieces(self, ids: Iterable[int]) -> list[Piece]:
        """``ids`` as pieces: control tokens by id, everything between them decoded as plain text."""
        pieces: list[Piece] = []
        run: list[int] = []
        names = self._names
        for index in ids:
            if index not in names:
                run.append(index)
                continue
            if run:
                pieces.append((self.decode(run), False))
                run = []
            pieces.append((names[index], True))
        if run:
            pieces.append((self.decode(run), False))
        return pieces

    # ---------------------------------------------------------------- facts

    @property
    def im_end_id(self) -> int:
        """Id of ``<|im_end|>``, which ends a turn."""
        return self.special[IM_END]

    @property
    def pad_id(self) -> int:
        """Id of ``[PAD]``."""
        return self.special[PAD]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that are equal exactly where the vocabulary, merges and splits are equal."""
        content = json.loads(self._backend.to_str())
        text = json.dumps({key: content[key] for key in ("added_tokens", "pre_tokenizer", "model")}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # ---------------------------------------------------------------- disk, other processes

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its content; the cache stays behind."""
        return _restore, (self._backend.to_str(),)

    def save(self, path: str | Path) -> Path:
        """Write one ``tokenizer.json`` (``path`` is that file or its folder) that Hugging Face loads as well."""
        path = _file(path)
        return write_text(path, self._backend.to_str(pretty=True))

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a ``tokenizer.json`` (``path`` is that file or its folder)."""
        path = _file(path)
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {path}: train one with `parl sft`, or give its folder")
        try:
            tree = read_json(path, MOST_BYTES)  # an object of bounded size and depth, each key once
            backend = Backend.from_str(path.read_text(encoding="utf-8"))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the backend raises plain Exception for any bad file, or panics
            raise ValueError(f"{path} is not a tokenizer file: {error}") from error
        try:
            check_ids(backend, tree)
            return cls(backend)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


class KimiTokenizer(Tokenizer):
    """The 163,840 ids of Kimi K2 and K2.5, read from the model's own files (extra: ``kimi``).

    Split pattern, the 256 special slots and the cutting of very long texts are those of the official tokenizer.
    """

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
        probe(lambda text: list(self._encode(text)), {name: self.special[name] for name in SPECIAL_TOKENS})

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        """Ids of ``text``, in which control-token strings count as control tokens: the official default.

        Only for trusted text, such as a rendered conversation that holds nobody's words but ours; ``encode_segments``,
        or ``allow_special=False``, makes none.
        """
        if allow_special:
            return [index for part in _parts(text) for index in self._core.encode(part, allowed_special="all")]
        return super().encode(text)

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


def _restore(content: str) -> Tokenizer:
    return Tokenizer(Backend.from_str(content))


def _token_bytes(backend: Backend, names: dict[int, str]) -> list[bytes]:
    table = {symbol: byte for byte, symbol in enumerate(_byte_symbols())}
    result = []
    for index in range(backend.get_vocab_size(with_added_tokens=True)):
        token = backend.id_to_token(index)
        if token is None:
            raise ValueError(f"the vocabulary has no token with id {index}")
        known = index not in names and all(symbol in table for symbol in token)
        result.append(bytes(table[symbol] for symbol in token) if known else token.encode())
    return result


def _byte_symbols() -> list[str]:
    """The printable stand-in of every byte, by byte value (the byte-level alphabet of GPT-2)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" else path / "tokenizer.json"


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a policy or checkpoint: ``tokenizer.json`` of ours, or Kimi's ``tiktoken.model``."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file() and (folder / "tiktoken.model").is_file():
        return KimiTokenizer(folder)
    return Tokenizer.load(folder)


def _core(ranks: dict[bytes, int], special: dict[str, int]) -> Any:
    try:
        import tiktoken  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Kimi's vocabulary needs tiktoken: pip install tiktoken") from error
    return tiktoken.Encoding("kimi", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def _read_ranks(path: Path) -> dict[bytes, int]:
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


def _read_special(path: Path, first: int) -> dict[str, int]:
    if not path.is_file():
        raise FileNotFoundError(f"no names of special tokens at {path}")
    added = read_json(path).get("added_tokens_decoder")
    try:
        named = {int(index): entry["content"] for index, entry in added.items()}  # type: ignore[union-attr]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: added_tokens_decoder must give ids their content ({error})") from None
    names = [named.get(i, f"<|reserved_token_{i}|>") for i in range(first, first + _SLOTS)]
    wrong = next((name for name in names if not isinstance(name, str) or not name or names.count(name) > 1), None)
    if wrong is not None:
        raise ValueError(f"{path}: {wrong!r} is no name of one special token: each has a text of its own")
    special = {name: first + place for place, name in enumerate(names)}
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
