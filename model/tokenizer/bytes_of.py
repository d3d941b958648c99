"""The exact bytes that each id of a ``tokenizer.json`` stands for.

Two ways of writing bytes are read: byte-level vocabularies (GPT-2's alphabet: Qwen, Llama 3, gpt-oss, GLM, DeepSeek)
and characters with ``<0x0A>`` for what has none of its own (Llama 2, Mistral, Gemma). Others are refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_BYTE = re.compile("<0x([0-9A-F]{2})>")
_BLANK = "▁"
_UNUSED = "\ufffd".encode()  # ids that no token has


def check_kind(tree: Mapping[str, Any]) -> None:
    """ValueError where the file's ids do not stand for bytes, or not for all of them."""
    model = tree["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise ValueError(f"its model is {model.get('type')!r}: only BPE gives text back exactly")
    if not (byte_level(tree) or model.get("byte_fallback")):
        raise ValueError("it is neither byte-level nor has it byte_fallback: not every text comes back from its ids")


def byte_level(tree: Mapping[str, Any]) -> bool:
    """Whether the vocabulary is written in GPT-2's alphabet of bytes."""
    return "ByteLevel" in {*_types(tree.get("decoder")), *_types(tree.get("pre_tokenizer"))}


def prefixed(tree: Mapping[str, Any]) -> bool:
    """Whether a blank is put before every run of plain text (Llama 2, the older Mistral)."""
    if "Prepend" in _types(tree.get("normalizer")):
        return True
    return any(node.get("prepend_scheme") == "always" for node in _nodes(tree.get("pre_tokenizer")))


def lacking_bytes(tree: Mapping[str, Any], control: Mapping[str, int]) -> bytes:
    """The bytes that have no token of their own beside the control tokens (SmolLM2 lacks 21 that hardly occur).

    ValueError where letters, digits, signs or blanks are among them, or those of U+FFFD, which stands for the others.
    """
    ids, vocab = set(control.values()), tree["model"]["vocab"]
    names = byte_symbols() if byte_level(tree) else [f"<0x{byte:02X}>" for byte in range(256)]
    lacking = bytes(byte for byte, name in enumerate(names) if vocab.get(name) is None or vocab[name] in ids)
    needed = sorted(set(lacking) & {*range(32, 127), *b"\n\t", *_UNUSED})
    if needed:
        raise ValueError(f"its vocabulary lacks {len(needed)} bytes of ordinary text, e.g. {chr(needed[0])!r}")
    return lacking


def token_bytes(tree: Mapping[str, Any]) -> list[bytes]:
    """The bytes of every id; of added tokens their names, of ids that no token has U+FFFD."""
    vocab, added = tree["model"]["vocab"], tree.get("added_tokens") or []
    size = 1 + max(max(vocab.values(), default=0), max((token["id"] for token in added), default=0))
    if size > 4 * (len(vocab) + len(added)) + 256:
        raise ValueError(f"its largest id is {size - 1}, with {len(vocab) + len(added)} tokens")
    result = [_UNUSED] * size
    level = {symbol: byte for byte, symbol in enumerate(byte_symbols())} if byte_level(tree) else None
    for symbols, index in vocab.items():
        result[index] = _from_level(symbols, level) if level else _from_characters(symbols)
    for token in added:
        name = token["content"]
        result[token["id"]] = (name if level or token["special"] else name.replace(_BLANK, " ")).encode()
    return result


def byte_symbols() -> list[str]:
    """The printable stand-in of every byte, by byte value (the byte-level alphabet of GPT-2)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def _from_level(symbols: str, level: Mapping[str, int]) -> bytes:
    known = all(symbol in level for symbol in symbols)
    return bytes(level[symbol] for symbol in symbols) if known else symbols.encode()


def _from_characters(symbols: str) -> bytes:
    byte = _BYTE.fullmatch(symbols)
    return bytes([int(byte[1], 16)]) if byte else symbols.replace(_BLANK, " ").encode()


def _nodes(node: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(node, dict):
        yield node
        for key in ("normalizers", "pretokenizers", "decoders"):
            for inner in node.get(key) or ():
                yield from _nodes(inner)


def _types(node: Any) -> set[str]:
    return {str(inner.get("type")) for inner in _nodes(node)}
