"""Control tokens of a tokenizer's file: each has one id, and no text that an agent reads may become one.

A control token is an added token that the file marks as special or that is written like one (``<|im_end|>``,
``[INST]``), whatever its other flags say. Added tokens that are neither, such as runs of blanks, are ordinary words.

Plain text is encoded with :func:`plain_file`: the same tokenizer without its control tokens, neither as added tokens
nor in the vocabulary. So no text can become one, whatever flags, normaliser and merges the file has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import Tokenizer as Backend

_MARKER = re.compile(r"<\S+>|\[[^\s\d]\S*\]|<\|[^<>]*\|>|[<＜][|｜].*[|｜][>＞]", re.DOTALL)


def control_ids(tree: Mapping[str, Any]) -> dict[str, int]:
    """Control token -> id of a ``tokenizer.json``, in the order of the ids."""
    added = sorted(tree.get("added_tokens") or [], key=lambda token: token["id"])
    return {token["content"]: token["id"] for token in added if token["special"] or _MARKER.fullmatch(token["content"])}


def check_ids(backend: Backend, tree: Mapping[str, Any]) -> None:
    """ValueError where the tokens that a file adds have other ids in ``backend`` than the file says.

    The library numbers them anew where two share an id or one lies beyond the vocabulary; weights know the file's.
    """
    seen: dict[int, str] = {}
    for token in tree.get("added_tokens") or []:
        content, index = token["content"], token["id"]
        if not content:
            raise ValueError(f"added_tokens: the token with the id {index} is empty")
        if index in seen:
            raise ValueError(f"added_tokens: {seen[index]!r} and {content!r} have the same id {index}")
        seen[index] = content
        if (found := backend.token_to_id(content)) != index:
            raise ValueError(f"added_tokens: {content!r} is given the id {index}, it would be {found}")


def plain_file(tree: Mapping[str, Any], control: Mapping[str, int]) -> str:
    """The ``tokenizer.json`` that encodes plain text: ``tree`` without its ``control`` tokens.

    Added tokens that are words stay, with their ids. A blank that the file puts before the first word of a text only is
    not put anywhere: plain text always follows a control token.
    """
    ids = set(control.values())
    words = [token for token in tree.get("added_tokens") or [] if token["id"] not in ids]
    model = tree["model"]
    gone = {symbols for symbols, index in model["vocab"].items() if index in ids}
    vocab = {symbols: index for symbols, index in model["vocab"].items() if symbols not in gone}
    vocab |= {token["content"]: token["id"] for token in words}
    merges = [pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"]]
    if gone:
        merges = [pair for pair in merges if gone.isdisjoint((*pair, "".join(pair)))]
    kept = {**model, "vocab": vocab, "merges": merges, "unk_token": None}
    plain = {"added_tokens": words, "model": kept, "truncation": None, "padding": None, "post_processor": None}
    first = {"pre_tokenizer": _unprefixed(tree.get("pre_tokenizer"))}
    return json.dumps({**tree, **plain, **first}, ensure_ascii=False)


def _unprefixed(node: Any) -> Any:
    """A pre-tokenizer that puts no blank before the first word of a text."""
    if not isinstance(node, dict):
        return node
    if "pretokenizers" in node:
        return {**node, "pretokenizers": [_unprefixed(one) for one in node["pretokenizers"]]}
    return {**node, "prepend_scheme": "never"} if node.get("prepend_scheme") == "first" else node


def probe(encode: Callable[[str], list[int]], control: Mapping[str, int]) -> None:
    """Encode texts that spell control tokens as plain text. ValueError where one becomes a control token."""
    ids = set(control.values())
    for name in control:
        for text in (name, f"a{name}b", f" {name}\n"):
            if not ids.isdisjoint(encode(text)):
                raise ValueError(f"the text {text!r} becomes the control token {name}: it must stay text")
