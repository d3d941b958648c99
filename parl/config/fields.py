"""Which fields take a section or text, which YAML would read as something else.

YAML reads ``on``, ``no``, ``123``, ``1e3`` and ``2026-11-26`` as truth values, numbers and dates. In a field
that takes text they are text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo


def section(field: FieldInfo | None) -> type[BaseModel] | None:
    """The section behind ``field``, if it is one."""
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def takes_text(field: FieldInfo) -> bool:
    """Whether ``field`` holds text, a path, or one of several words, or optionally nothing."""
    return any(_is_text(kind) for kind in _kinds(field))


def text_of(field: FieldInfo, given: str) -> str | None:
    """The text of ``given`` in KEY=VALUE, without quotes around it; None if null is meant."""
    given = given.strip()
    if given in ("null", "~", "") and _may_be_null(field):
        return None
    if given[:1] in ("'", '"'):
        try:
            quoted = yaml.safe_load(given)
        except yaml.YAMLError:
            return given
        return quoted if isinstance(quoted, str) else given
    return given


def with_texts(tree: dict[str, Any], words: dict[str, Any], model: type[BaseModel] | None) -> dict[str, Any]:
    """``tree`` with the file's original words wherever a field takes text and YAML read something else.

    ``words``: the same file read with every scalar as text.
    """
    clean = {}
    for key, value in tree.items():
        field = model.model_fields.get(key) if model else None
        clean[key] = _with_words(field, value, words[key]) if field and key in words else value
    return clean


def _with_words(field: FieldInfo, value: Any, words: Any) -> Any:
    if isinstance(value, dict):
        return with_texts(value, words, _optional_section(field)) if isinstance(words, dict) else value
    if isinstance(value, list):
        listed = _is_list_of_text(field) and isinstance(words, list) and all(isinstance(word, str) for word in words)
        return words if listed else value
    kept = value is None and _may_be_null(field)
    return value if kept or isinstance(value, str) or not takes_text(field) or not isinstance(words, str) else words


def _optional_section(field: FieldInfo) -> type[BaseModel] | None:
    """The section of ``field``, also of one that may be null."""
    kinds = [kind for kind in _kinds(field) if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return section(field) or (kinds[0] if len(kinds) == 1 else None)


def _kinds(field: FieldInfo) -> tuple[Any, ...]:
    """The members of the field's annotation if it is a union; else the annotation."""
    kind = field.annotation
    is_union = get_origin(kind) not in (None, Literal, Annotated, tuple, list, dict)
    return get_args(kind) if is_union else (kind,)


def _is_text(kind: Any) -> bool:
    words = get_args(kind) if get_origin(kind) is Literal else ()
    return kind in (str, Path) or (bool(words) and all(isinstance(word, str) for word in words))


def _may_be_null(field: FieldInfo) -> bool:
    """Whether null means null rather than a word."""
    return type(None) in _kinds(field) or not any(kind in (str, Path) for kind in _kinds(field))


def _is_list_of_text(field: FieldInfo) -> bool:
    return any(get_origin(kind) is tuple and _is_text(get_args(kind)[0]) for kind in _kinds(field))
