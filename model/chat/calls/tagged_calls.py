"""Calls written in tags, with values that are not quoted: GLM, Qwen3-Coder and later (Nemotron 3), Gemma 4."""

from __future__ import annotations

import re
from typing import Any

from model.chat.calls.base import PYTHON, Said, Turn, plain, sections
from model.chat.reading import JSON, Malformed


def glm(turn: Turn) -> Said:
    """``<tool_call>name`` and pairs of ``<arg_key>``, ``<arg_value>``."""
    content, bodies = sections(turn, "<tool_call>", "</tool_call>")
    pair = turn.pattern(r"\s*«<arg_key>»(.*?)«</arg_key>»\s*«<arg_value>»(.*?)«</arg_value>»\s*")
    opened = turn.mark("<arg_key>")
    calls: list[tuple[Any, dict[str, Any]]] = []
    for body in bodies:
        name, found, rest = body.partition(opened)
        name = plain(name).strip()
        calls.append((name, _pairs(turn, pair, name, found + rest)))
    return Said(content=content.removesuffix("\n") if calls else content, calls=tuple(calls))


def coder(turn: Turn) -> Said:
    """``<tool_call><function=name>`` and ``<parameter=key>`` each, in lines of their own."""
    content, bodies = sections(turn, "<tool_call>", "</tool_call>")
    function = turn.pattern(r"\s*<function=([^>\n]*)>\n?(.*?)\n?</function>\s*")
    parameter = turn.pattern(r"\s*<parameter=([^>\n]*)>\n?(.*?)\n?</parameter>\s*")
    calls: list[tuple[Any, dict[str, Any]]] = []
    for body in bodies:
        if (found := function.fullmatch(body)) is None:
            raise Malformed("a call must be <function=NAME> … </function>")
        calls.append((found[1], _pairs(turn, parameter, found[1], found[2])))
    return Said(content=content.rstrip("\n") if calls else content, calls=tuple(calls))


def _pairs(turn: Turn, pair: re.Pattern[str], name: str, text: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    at = 0
    while at < len(text) and not text[at:].isspace():
        if (found := pair.match(text, at)) is None:
            raise Malformed("arguments must be pairs of a key and a value")
        key = plain(found[1]).strip()
        if key in arguments:
            raise Malformed(f"the argument {key!r} stands there twice")
        arguments[key] = turn.value(name, key, plain(found[2]))
        at = found.end()
    return arguments


def gemma(turn: Turn) -> Said:
    """``<|tool_call>call:name{key:<|"|>text<|"|>,key:1}<tool_call|>``: JSON without quotes around keys."""
    content, bodies = sections(turn, "<|tool_call>", "<tool_call|>")
    form = re.compile(r"call:([^{]*)(\{.*\})", re.DOTALL)
    calls: list[tuple[Any, dict[str, Any]]] = []
    for body in bodies:
        if (found := form.fullmatch(body)) is None:
            raise Malformed("a call must be call:NAME{…}")
        value, end = _value(found[2], 0, turn.mark('<|"|>'))
        if end != len(found[2]):
            raise Malformed("text after the arguments of a call")
        calls.append((plain(found[1]), value))
    return Said(content=content, calls=tuple(calls))


_KEY = re.compile(r"([^:{}\[\],]+):")
_SCALAR = re.compile(r"[^,{}\[\]]+")


def _value(text: str, at: int, quote: str) -> tuple[Any, int]:
    """The value at ``at`` and where it ends."""
    if text.startswith(quote, at):
        end = text.find(quote, at + len(quote))
        if end < 0:
            raise Malformed("a text in the arguments is not closed")
        return text[at + len(quote) : end], end + len(quote)
    if text.startswith("{", at) or text.startswith("[", at):
        return _several(text, at, quote)
    if (found := _SCALAR.match(text, at)) is None:
        raise Malformed("arguments lack a value")
    if found[0] in PYTHON:
        return PYTHON[found[0]], found.end()
    try:
        return JSON.decode(found[0]), found.end()
    except (ValueError, RecursionError):
        raise Malformed(f"{found[0]!r} in the arguments is no value") from None


def _several(text: str, at: int, quote: str) -> tuple[Any, int]:
    keyed, close = text[at] == "{", "}" if text[at] == "{" else "]"
    pairs: dict[str, Any] = {}
    items: list[Any] = []
    at += 1
    while not text.startswith(close, at):
        key = ""
        if keyed:
            if (found := _KEY.match(text, at)) is None:
                raise Malformed("arguments lack a key")
            key, at = plain(found[1]).removeprefix(quote).removesuffix(quote), found.end()
        value, at = _value(text, at, quote)
        pairs[key] = value
        items.append(value)
        if text.startswith(",", at):
            at += 1
        elif not text.startswith(close, at):
            raise Malformed("arguments are not closed")
    return (pairs if keyed else items), at + 1
