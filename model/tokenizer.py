"""Byte-level BPE with K2.5's control tokens, made for small models that must copy names and write tool calls.

Layout of the ids: learned tokens (the 256 bytes among them), then the atoms and the two-digit strings, then the
control tokens in Kimi's order. Before merging, text is cut so that

- digits stand alone in pairs from the left (``4217`` -> ``42``, ``17``);
- a name, a capitalised atom followed by one or two lower-case ones (``Karona``), is one token an atom, with or without
  a space before it, and merges with nothing; elsewhere the letters of an atom are ordinary letters (``climate``);
- everything else may merge across spaces, punctuation and braces, so the JSON of a call takes a few tokens.

``encode`` treats control-token strings in its text as plain text, always. Control ids come only from
``encode_segments``, for the pieces that the chat template marked as control.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from model.chat import END_THINK, EOS, IM_END, PAD, SPECIAL_TOKENS, THINK, Piece, call_id, dump_arguments
from model.chat_tools import declare_tools

_DIGITS = "[0-9]{1,2}"
_NUMBERS = [a + b for a, b in product("0123456789", repeat=2)]  # single digits are bytes
_CACHED_CHARS = 4096  # longer texts are not worth remembering


class Tokenizer:
    """Text to ids and back, exactly: ``decode(encode(text)) == text`` for any text without lone surrogates."""

    def __init__(self, backend: Backend) -> None:
        """Wrap ``backend``; use :func:`train_tokenizer` or :meth:`load` to get one."""
        added = {token.content: index for index, token in backend.get_added_tokens_decoder().items()}
        missing = [name for name in SPECIAL_TOKENS if name not in added]
        if missing:
            raise ValueError(f"not a parl tokenizer: it lacks the control tokens {', '.join(missing)}")
        backend.encode_special_tokens = True  # control strings inside a text are plain text
        self._backend = backend
        self.special: dict[str, int] = {name: added[name] for name in SPECIAL_TOKENS}
        self.vocab_size: int = backend.get_vocab_size(with_added_tokens=True)
        self._names = {index: name for name, index in self.special.items()}
        self._bytes = _token_bytes(backend, self._names)
        self._cached = lru_cache(maxsize=8192)(self._encode)

    # ---------------------------------------------------------------- text to ids

    def encode(self, text: str) -> list[int]:
        """Ids of ``text`` as plain text. A lone surrogate, which no encoding can carry, is read as U+FFFD."""
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
                ids += self.encode(plain)
                plain = ""
            ids.append(self.special[text])
        return ids + self.encode(plain) if plain else ids

    def _encode(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        try:
            return tuple(self._backend.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError):  # how the backend refuses a lone surrogate depends on its version
            repaired = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return tuple(self._backend.encode(repaired, add_special_tokens=False).ids)

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
    def eos_id(self) -> int:
        """Id of ``[EOS]``."""
        return self.special[EOS]

    @property
    def pad_id(self) -> int:
        """Id of ``[PAD]``."""
        return self.special[PAD]

    @property
    def think_id(self) -> int:
        """Id of ``<think>``."""
        return self.special[THINK]

    @property
    def end_think_id(self) -> int:
        """Id of ``</think>``."""
        return self.special[END_THINK]

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
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a ``tokenizer.json`` (``path`` is that file or its folder)."""
        path = _file(path)
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {path}: train one with `parl sft`, or give its folder")
        try:
            backend = Backend.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the backend raises plain Exception for any bad file
            raise ValueError(f"{path} is not a tokenizer file: {error}") from error
        try:
            return cls(backend)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    atoms: Sequence[str] = (),
    words: Sequence[str] = (),
    items: int = 0,
    max_token_length: int = 32,
) -> Tokenizer:
    """Learn a vocabulary of ``vocab_size`` ids in all (fewer where ``texts`` gives no more merges).

    ``atoms`` are the parts of names: one token each, wherever a capitalised one is followed by lower-case ones.
    ``words`` are one token each wherever they stand as a whole word, so that a value has one spelling in every context.
    ``items``: the numbers of a list's first items are one token each (``3. ``), which is no number's token.
    The same arguments give the same tokenizer, bit for bit.
    """
    atoms = sorted(set(atoms))
    whole = [*_NUMBERS, *(atom for atom in atoms if not atom.isdigit()), *sorted(set(words))]
    whole += [f"{i}. " for i in range(1, items + 1)]
    least = 256 + len(whole) + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(f"vocab_size {vocab_size} is too small: bytes, digits, atoms and control tokens take {least}")
    pattern = _isolated(atoms, words, items)
    room = vocab_size - len(SPECIAL_TOKENS)
    vocab, merges = _learn(texts, pattern, [_as_symbols(text) for text in whole], room, max_token_length)
    backend = Backend(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = _splitter(pattern, "isolated")
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    return Tokenizer(backend)


def name_pattern(atoms: Sequence[str]) -> str:
    """Regex that matches one atom inside a name: a capitalised atom, one or two lower-case ones, then no letter."""
    heads = [atom for atom in atoms if atom[:1].isupper()]
    tails = [atom for atom in atoms if not atom[:1].isupper()]
    if not heads or not tails:
        raise ValueError("atoms must have capitalised strings and lower-case ones: a name is made of both")
    head, tail, end = _one_of(heads), _one_of(tails), "(?![a-z])"
    # A look-behind must have a fixed length, hence one for every combination of lengths. It comes last: rarely tried.
    one = "|".join(f"(?<={_one_of(h)}{_one_of(t)})" for h, t in product(_by_length(heads), _by_length(tails)))
    two = "|".join(
        f"(?<={_one_of(h)}{_one_of(t)}{_one_of(u)})"
        for h, t, u in product(_by_length(heads), _by_length(tails), _by_length(tails))
    )
    return f"{head}(?={tail}{{1,2}}{end})|{tail}(?:(?:{one})(?={tail}?{end})|(?:{two}){end})"


def chat_corpus(tools: Iterable[Mapping[str, Any]], *, calls: int = 41, repeats: int = 1) -> Iterator[str]:
    """The plain text that the chat template adds around a corpus: what ``train_tokenizer`` should see besides it.

    The declaration once (what occurs once earns no merges of its own), then ``repeats`` times for every tool and
    index below ``calls`` the role words, the call's id, the JSON between its arguments and its result's heading.
    """
    tools = list(tools)
    yield declare_tools(tools)
    for _, tool, index in product(range(repeats), tools, range(calls)):
        function = tool["function"]
        identifier = call_id(function["name"], index)
        yield from ("system", "user", "assistant", "tool", function["name"], identifier)
        yield f"## Return of {identifier}\n"
        names = list((function.get("parameters") or {}).get("properties") or ())
        if names:
            scaffold = dump_arguments(dict.fromkeys(names, "\n")).split('"\\n"')
            yield f'{scaffold[0]}"'
            yield from (f'"{between}"' for between in scaffold[1:-1])
            yield f'"{scaffold[-1]}'


def plain_texts(pieces: Iterable[Piece]) -> Iterator[str]:
    """The runs of plain text in rendered pieces, as they will be encoded: training text from whole conversations."""
    for is_control, run in groupby(pieces, key=lambda piece: piece[1]):
        if not is_control:
            yield "".join(text for text, _ in run)


def _restore(content: str) -> Tokenizer:
    return Tokenizer(Backend.from_str(content))


def _by_length(strings: Iterable[str]) -> list[list[str]]:
    return [list(group) for _, group in groupby(sorted(strings, key=len), key=len)]


def _one_of(strings: Iterable[str]) -> str:
    """Regex that matches one of ``strings``, longest first, as a tree of characters (several times faster)."""
    tree: dict[str, list[str]] = {}
    strings = list(strings)
    for text in strings:
        if text:
            tree.setdefault(text[0], []).append(text[1:])
    if not tree:
        return ""
    branches = "|".join(re.escape(first) + _one_of(rest) for first, rest in sorted(tree.items()))
    return f"(?:{branches})" + ("?" if "" in strings else "")


def _learn(
    texts: Iterable[str], pattern: str, whole: list[str], size: int, max_token_length: int
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary of at most ``size`` ids, ``whole`` last, and the merges of the text between the isolated strings."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = _splitter(pattern, "removed")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=alphabet,
        max_token_length=max_token_length,
    )
    backend.train_from_iterator(texts, trainer)
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    apart = set(whole) - set(vocab)  # wanted, and not yet learned by chance
    for left, right in json.loads(backend.to_str())["model"]["merges"]:
        if len(vocab) + len(apart) == size and left + right not in apart:
            break  # merges build on earlier ones only, so the first ones are a vocabulary by themselves
        vocab.setdefault(left + right, len(vocab))
        apart.discard(left + right)
        merges.append((left, right))
    for symbols in whole:
        vocab.setdefault(symbols, len(vocab))
    return vocab, merges


def _splitter(pattern: str, behavior: str) -> pre_tokenizers.PreTokenizer:
    cut = pre_tokenizers.Split(Regex(pattern), behavior)
    return pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _isolated(atoms: Sequence[str], words: Sequence[str] = (), items: int = 0) -> str:
    numbers = [r"(?<![0-9])[0-9]{1,2}\. (?! )"] if items else []
    names = [name_pattern(atoms)] if atoms else []
    whole = [rf"(?<![A-Za-z]){_one_of(sorted(set(words)))}(?![A-Za-z])"] if words else []
    return "|".join([*numbers, _DIGITS, *names, *whole])


def _as_symbols(text: str) -> str:
    """``text`` in the alphabet that byte-level vocabularies are written in."""
    [(symbols, _)] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return symbols


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
