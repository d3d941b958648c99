"""A byte-level BPE vocabulary for small models that must copy names and write tool calls.

Layout of the ids: learned tokens (the 256 bytes among them), then the atoms and the two-digit strings, then the
control tokens in Kimi's order. Before merging, text is cut so that

- digits stand alone in pairs from the left (``4217`` -> ``42``, ``17``);
- a name, a capitalised atom followed by one or two lower-case ones (``Karona``), is one token an atom, with or without
  a space before it, and merges with nothing; elsewhere the letters of an atom are ordinary letters (``climate``);
- everything else may merge across spaces, punctuation and braces, so the JSON of a call takes a few tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, product

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from model.chat.base import Piece
from model.chat.kimi_tokens import SPECIAL_TOKENS
from model.tokenizer.tokenizer import Tokenizer

_DIGITS = "[0-9]{1,2}"
_NUMBERS = [a + b for a, b in product("0123456789", repeat=2)]  # single digits are bytes


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
    return Tokenizer(backend.to_str(pretty=True))


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


def plain_texts(pieces: Iterable[Piece]) -> Iterator[str]:
    """The runs of plain text in rendered pieces, as they will be encoded: training text from whole conversations."""
    for is_control, run in groupby(pieces, key=lambda piece: piece[1]):
        if not is_control:
            yield "".join(text for text, _ in run)


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
