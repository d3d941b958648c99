"""Control tokens of a tokenizer's file: each has one id, and no text that an agent reads may become one.

A file can break that in many ways: a control token that is not marked as special, one with flags that reach beyond it,
a normaliser that makes its spelling out of other letters, a vocabulary that learnt the spelling under the same id. So
the flags are looked at, and then texts are encoded that must stay texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Tokenizer as Backend

from model.chat.kimi_tokens import SPECIAL_TOKENS

_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def control_ids(backend: Backend) -> dict[str, int]:
    """Control token -> id of a file's added tokens. ValueError names the token and what is wrong with it."""
    decoder = backend.get_added_tokens_decoder()
    added = {token.content: (index, token) for index, token in decoder.items()}
    missing = [name for name in SPECIAL_TOKENS if name not in added]
    if missing:
        raise ValueError(f"not a parl tokenizer: it lacks the control tokens {', '.join(missing)}")
    size = backend.get_vocab_size(with_added_tokens=True)
    for name in SPECIAL_TOKENS:
        index, token = added[name]
        if not token.special:
            raise ValueError(f"added_tokens: {name} has special=false: texts that spell it would become the token")
        wrong = [flag for flag in _FLAGS if getattr(token, flag)]
        if wrong:
            raise ValueError(f"added_tokens: {name} has {wrong[0]}=true: a control token stands for its spelling alone")
        if not 0 <= index < size or backend.id_to_token(index) != name:
            raise ValueError(f"added_tokens: {name} has the id {index}, which is not its own among {size} ids")
    ids = {name: added[name][0] for name in SPECIAL_TOKENS}
    if len(set(ids.values())) < len(ids):
        raise ValueError("added_tokens: two control tokens have one id")
    return ids


def check_ids(backend: Backend, tree: Mapping[str, Any]) -> None:
    """ValueError where the tokens that a file adds have other ids in ``backend`` than the file says.

    The library numbers them anew where two share an id or one lies beyond the vocabulary; weights know the file's.
    """
    for token in tree.get("added_tokens") or []:
        found = backend.token_to_id(token["content"])
        if found != token["id"]:
            raise ValueError(f"added_tokens: {token['content']!r} is given the id {token['id']}, it would be {found}")


def probe(encode: Callable[[str], list[int]], control: Mapping[str, int]) -> None:
    """Encode texts that spell control tokens as plain text. ValueError where one becomes a control token."""
    ids = set(control.values())
    for name in control:
        for text in _spellings(name):
            if not ids.isdisjoint(encode(text)):
                raise ValueError(f"the text {text!r} becomes the control token {name}: it must stay text")


def _spellings(name: str) -> list[str]:
    """The token's name alone, among other text, and as normalisers might make it."""
    wide = "".join(chr(ord(letter) + 0xFEE0) if "!" <= letter <= "~" else letter for letter in name)
    parted = "\u200b".join(name)
    around = [f"a{name}b", f" {name} ", f"\n{name}\n", f"{name}{name}", f"say {name}: no"]
    return [name, *around, name.upper(), name.lower(), name.swapcase(), wide, parted, f"{name[0]} {name[1:]}"]
