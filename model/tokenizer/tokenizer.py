"""Text to ids and back: any byte-exact ``tokenizer.json`` of Hugging Face, parl's own among them, and Kimi's files.

Both treat control-token strings inside a text as plain text unless they are told to trust it. What an agent reads
never becomes a control token: transcripts are encoded with ``encode_segments``, which makes control ids of those pieces
only that the chat format marked as control.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from model.chat.base import Piece
from model.chat.kimi_tokens import SPECIAL_TOKENS
from model.files import write_text
from model.json_file import parse_json, read_json
from model.tokenizer.bytes_of import check_kind, lacking_bytes, prefixed, token_bytes
from model.tokenizer.control_tokens import check_ids, control_ids, plain_file, probe
from model.tokenizer.kimi_files import MOST_BYTES, PATTERN, SLOTS, core, parts, read_ranks, read_special

_CACHED_CHARS = 4096  # longer texts are not worth remembering
_CONFIG, _TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_BESIDE = (_CONFIG, _TEMPLATE)  # files that are kept with the vocabulary
MOST_TEMPLATE_BYTES = 2**20
_TRIED = ("Hello, wörld: é 🚀\n\t  two  blanks", '日本語 {"a": [1, 2.5, null]}')  # must come back


class Tokenizer:
    """Text to ids and back: ``decode(encode(text)) == text`` for any text without lone surrogates.

    Where the file has a normaliser (Qwen: Unicode's form C), the normalised text comes back.

    ``special``: control token -> id; ``vocab_size``: ids run below it; ``template``: the model's Jinja chat template.
    """

    def __init__(self, content: str, beside: Mapping[str, str] | None = None) -> None:
        """Read the ``content`` of a ``tokenizer.json``; ``beside``: name -> content of the files that come with it.

        ValueError says what is wrong. Use :func:`model.tokenizer.bpe.train_tokenizer` or :meth:`load` to get one.
        """
        self._content, self._beside = content, dict(beside or {})
        tree = json.loads(content)
        check_kind(tree)
        check_ids(Backend.from_str(content), tree)
        self.special: dict[str, int] = control_ids(tree)
        self._lacking = lacking_bytes(tree, self.special)
        self._backend = Backend.from_str(plain_file(tree, self.special))
        self._bytes = token_bytes(tree)
        self.vocab_size: int = len(self._bytes)
        self._names = {index: name for name, index in self.special.items()}
        self._control = frozenset(self._names)
        eaten = [token for token in tree.get("added_tokens") or () if token["lstrip"] or token["rstrip"]]
        self._eats = {token["content"]: (token["lstrip"], token["rstrip"]) for token in eaten}
        self._prefixed = prefixed(tree)
        self._cached = lru_cache(maxsize=8192)(self._encode)
        probe(self._backend_ids, self.special)
        self._try_out()

    def _try_out(self) -> None:
        for text in (_without(text, self._lacking) for text in _TRIED):
            [(found, _)] = self.pieces(self._backend_ids(text))
            if found != text:
                raise ValueError(f"its ids do not give text back: {text!r} comes back as {found!r}")

    # ---------------------------------------------------------------- text to ids

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of ``text`` as plain text; with ``allow_special``, control-token strings in it become control ids.

        A lone surrogate, which no encoding can carry, is read as U+FFFD, as is a character whose bytes have no ids.
        """
        if allow_special:
            return self.encode_segments(self.trusted(text))
        return list(self._cached(text) if len(text) <= _CACHED_CHARS else self._encode(text))

    def trusted(self, text: str) -> list[Piece]:
        """``text`` as pieces in which every spelling of a control token is one: for text that is the format's own."""
        cut = enumerate(self._spelling.split(text))
        return [(part, bool(index % 2)) for index, part in cut if part]

    @cached_property
    def _spelling(self) -> re.Pattern[str]:
        names = sorted(self.special, key=len, reverse=True)
        return re.compile("(" + ("|".join(map(re.escape, names)) or "(?!)") + ")")

    def encode_segments(self, pieces: Iterable[Piece]) -> list[int]:
        """Ids of rendered pieces: control pieces become control ids, all other text is plain.

        Neighbouring plain pieces are joined first, so the ids do not depend on how the template cut its text. Blanks
        beside a control token that eats them (``lstrip``, ``rstrip``) are left out, as the library does.
        """
        ids: list[int] = []
        plain, after = "", False
        for text, is_control in pieces:
            if not is_control:
                plain += text
                continue
            before, next_after = self._eats.get(text, (False, False))
            ids += self._run(plain, after, before)
            plain, after = "", next_after
            ids.append(self.special[text])
        return ids + self._run(plain, after, False)

    def _run(self, plain: str, after: bool, before: bool) -> list[int]:
        plain = plain.lstrip() if after else plain
        plain = plain.rstrip() if before else plain
        return self.encode(plain, allow_special=False) if plain else []

    def _encode(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        ids = self._backend_ids(text)
        if not self._control.isdisjoint(ids):  # cannot be: the plain vocabulary has none
            found = next(self._names[index] for index in ids if index in self._control)
            raise ValueError(f"the tokenizer reads a plain text of {len(text)} characters as the control token {found}")
        return tuple(ids)

    def _backend_ids(self, text: str) -> list[int]:
        if self._lacking:
            text = _without(text, self._lacking)
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
        """``ids`` as pieces: control tokens by id, everything between them decoded as plain text.

        The blank that some vocabularies put before every run of plain text is left out.
        """
        pieces: list[Piece] = []
        run: list[int] = []
        names = self._names
        for index in ids:
            if index not in names:
                run.append(index)
                continue
            if run:
                pieces.append((self._plain(run), False))
                run = []
            pieces.append((names[index], True))
        if run:
            pieces.append((self._plain(run), False))
        return pieces

    def _plain(self, run: list[int]) -> str:
        text = self.decode(run)
        return text.removeprefix(" ") if self._prefixed else text

    # ---------------------------------------------------------------- facts

    @property
    def config(self) -> dict[str, Any]:
        """The ``tokenizer_config.json`` that came with the vocabulary; empty where none did."""
        found = parse_json(self._beside.get(_CONFIG, "{}"))
        return found if isinstance(found, dict) else {}

    @property
    def template(self) -> str | None:
        """The model's Jinja chat template (the one for tools where there are several); None where it has none."""
        found = self._beside.get(_TEMPLATE) or self.config.get("chat_template")
        if isinstance(found, list):  # several, by name
            named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
            found = named.get("tool_use") or named.get("default")
        return found if isinstance(found, str) else None

    def named(self, role: str) -> str | None:
        """The token that ``tokenizer_config.json`` names as ``role`` (``bos_token``, ``eos_token``); None without."""
        found = self.config.get(role)
        found = found.get("content") if isinstance(found, dict) else found
        return found if isinstance(found, str) else None

    @property
    def fingerprint(self) -> str:
        """16 hex digits that are equal exactly where the vocabulary, merges and splits are equal."""
        content = json.loads(self._content)
        keys = ("added_tokens", "normalizer", "pre_tokenizer", "model")
        text = json.dumps({key: content.get(key) for key in keys}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    # ---------------------------------------------------------------- disk, other processes

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its content; the cache stays behind."""
        return Tokenizer, (self._content, self._beside)

    def save(self, path: str | Path) -> Path:
        """Write ``tokenizer.json`` (``path`` is that file or its folder), which Hugging Face loads."""
        path = _file(path)
        for name, content in self._beside.items():
            write_text(path.parent / name, content)
        return write_text(path, self._content)

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a ``tokenizer.json`` (``path`` is that file or its folder) with the template beside it."""
        path = _file(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no tokenizer at {path}: `parl sft` trains one; where there is another kind of tokenizer file,"
                " AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes it"
            )
        try:
            read_json(path, MOST_BYTES)  # an object of bounded size and depth, each key once
            content = path.read_text(encoding="utf-8")
        except ValueError as error:
            raise ValueError(f"{path} is not a tokenizer file: {error}") from error
        beside = _read_beside(path.parent)
        try:
            return cls(content, beside)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the backend raises plain Exception for any bad file, or panics
            raise ValueError(f"{path} is not a tokenizer file: {error!r}") from error


class KimiTokenizer(Tokenizer):
    """The 163,840 ids of Kimi K2 and K2.5, read from the model's own files (extra: ``kimi``).

    Split pattern, the 256 special slots and the cutting of very long texts are those of the official tokenizer.
    """

    def __init__(self, folder: str | Path) -> None:
        """Read ``tiktoken.model`` and ``tokenizer_config.json`` of ``folder``."""
        self.folder = Path(folder)
        ranks = read_ranks(self.folder / "tiktoken.model")
        self.special = read_special(self.folder / "tokenizer_config.json", len(ranks))
        self._core = core(ranks, self.special)
        self.vocab_size = len(ranks) + SLOTS
        self._names = {index: name for name, index in self.special.items()}
        by_id = {index: token for token, index in ranks.items()}
        self._bytes = [by_id[index] for index in range(len(ranks))]
        self._bytes += [self._names[index].encode() for index in range(len(ranks), self.vocab_size)]
        self._control, self._eats, self._prefixed = frozenset(self._names), {}, False
        self._beside = _read_beside(self.folder)
        self._cached = lru_cache(maxsize=8192)(self._encode)
        probe(lambda text: list(self._encode(text)), {name: self.special[name] for name in SPECIAL_TOKENS})

    def encode(self, text: str, allow_special: bool = True) -> list[int]:
        """Ids of ``text``, in which control-token strings count as control tokens: the official default.

        Only for trusted text, such as a rendered conversation that holds nobody's words but ours; ``encode_segments``,
        or ``allow_special=False``, makes none.
        """
        if allow_special:
            return [index for part in parts(text) for index in self._core.encode(part, allowed_special="all")]
        return super().encode(text)

    def _encode(self, text: str) -> tuple[int, ...]:
        encode = self._core.encode_ordinary
        return tuple(index for part in parts(text) for index in encode(part))

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
        """Copy the files into the folder ``path``."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        for name in ("tiktoken.model", *self._beside):
            (path / name).write_bytes((self.folder / name).read_bytes())
        return path

    @classmethod
    def load(cls, path: str | Path) -> KimiTokenizer:
        """Read the folder ``path``."""
        return cls(path)


def _without(text: str, lacking: bytes) -> str:
    """``text`` with U+FFFD for the characters that hold a byte of ``lacking``."""
    data = text.encode("utf-8", "surrogatepass")
    if len(data.translate(None, lacking)) == len(data):
        return text
    bad = set(lacking)
    return "".join("\ufffd" if bad.intersection(one.encode("utf-8", "surrogatepass")) else one for one in text)


def _read_beside(folder: Path) -> dict[str, str]:
    """The files that come with a vocabulary; ValueError names one that cannot be read."""
    found = {}
    for name in _BESIDE:
        file = folder / name
        if file.is_file():
            if name == _CONFIG:
                read_json(file, finite=False)
            elif file.stat().st_size > MOST_TEMPLATE_BYTES:
                raise ValueError(f"{file} has more than {MOST_TEMPLATE_BYTES:,} bytes: it is no chat template")
            found[name] = file.read_text(encoding="utf-8")
    return found


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".json" else path / "tokenizer.json"


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a policy or checkpoint: a ``tokenizer.json``, or Kimi's ``tiktoken.model``."""
    folder = Path(folder)
    if not (folder / "tokenizer.json").is_file() and (folder / "tiktoken.model").is_file():
        return KimiTokenizer(folder)
    return Tokenizer.load(folder)
