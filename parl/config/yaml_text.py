"""Untrusted YAML: small, flat, without tags, unique text keys. Errors are ``yaml.YAMLError``."""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

MOST_BYTES = 2**20
_DEPTH, _NODES = 40, 20_000  # including expanded aliases
_HEAD = "# All settings of a run, as parl has written them. The last line is '...'; without it the file is cut off."
_TAG = "tag:yaml.org,2002:"
_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_DIGITS = 60  # of an integer; Python refuses to read thousands


def parse(text: str) -> Any:
    """The tree in ``text``. ``yaml.YAMLError`` says what is wrong, and where if known."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _measure(node, {}, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def marked(text: str) -> str:
    """``text`` with a first and a last line by which :func:`cut_off` detects truncation."""
    return f"{_HEAD}\n{text}...\n"


def cut_off(text: str) -> bool:
    """Whether the end of :func:`marked`'s output is missing. (Half a document is often valid YAML.)"""
    begun = text.startswith(_HEAD) or (bool(text.strip()) and _HEAD.startswith(text.strip()))
    return begun and not re.search(r"^\.\.\.\s*$", text, re.MULTILINE)


def whole_run(text: str) -> bool:
    """Whether it is :func:`marked`'s output, with every key of its time."""
    return text.startswith(_HEAD)


def words(text: str) -> Any:
    """The same tree with every value as text, for ``text`` that :func:`parse` has read."""
    return yaml.load(text, Loader=yaml.BaseLoader)


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``3e-4`` as a number, dates as text, and refuses repeated and non-text keys."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class's attribute
        first: [pair for pair in pairs if pair[0] != f"{_TAG}timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        self._depth, self._nodes = self._depth + 1, self._nodes + 1
        if self._depth > _DEPTH:
            raise ComposerError(None, None, f"it is nested more than {_DEPTH} deep", event.start_mark)
        if self._nodes > _NODES:
            raise ComposerError(None, None, f"it has more than {_NODES:,} values", event.start_mark)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", *_TAGS):
            raise ComposerError(
                None, None, f"the tag {tag!r:.80} is not allowed: write the value itself", event.start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag not in (f"{_TAG}str", f"{_TAG}merge"):
                given = repr(key.value) if isinstance(key, yaml.ScalarNode) else "of several values"
                raise ConstructorError(None, None, f"the key {given:.80} is no text: quote it", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _DIGITS:
            raise ConstructorError(None, None, f"a whole number of {len(node.value)} digits", node.start_mark)
        return super().construct_yaml_int(node)


_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"^[-+]?(\d[\d_]*)(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]], above: set[int]) -> tuple[int, int]:
    """(values, depth) of ``node`` with expanded aliases."""
    if id(node) in known:
        return known[id(node)]
    if id(node) in above:
        raise ComposerError(None, None, "an alias stands for what it is in", node.start_mark)
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    above.add(id(node))
    sizes = [_measure(child, known, above) for child in children]
    above.discard(id(node))
    size, depth = 1 + sum(one for one, _ in sizes), 1 + max((two for _, two in sizes), default=0)
    if size > _NODES or depth > _DEPTH:
        text = f"its aliases stand for {size:,} values, {depth} deep; at most {_NODES:,} and {_DEPTH}"
        raise ComposerError(None, None, text, node.start_mark)
    known[id(node)] = size, depth
    return size, depth
