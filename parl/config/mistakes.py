"""Explains pydantic's errors of a configuration: the key, the value, what is allowed, the nearest key.

``root`` is the class of the whole configuration, with the chosen sections.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from parl.config.fields import section
from parl.config.plugin_sections import CHOICES, Choice, built_in_sections
from parl.config.schema import Config, ConfigFields
from parl.shown.redaction import without_credentials
from rollouts.engine.address import shown

_TYPE_WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text (quote it in YAML)",
    "path_type": "a path",
    "dict_type": "a mapping of keys to values",
    "tuple_type": "a list",
}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def explain(detail: dict[str, Any], root: type[ConfigFields]) -> list[str]:
    """One readable line per problem that pydantic found."""
    value, kind = detail["input"], detail["type"]
    loc, field, model = _found([str(part) for part in detail["loc"]], root)
    key = ".".join(loc)
    if kind == "extra_forbidden":
        return [_unknown(unknown, given, model, root) for unknown, given in leaves({key: value})]
    if kind == "value_error":
        return [_value_error(loc, model, str(detail["ctx"]["error"]))]
    if kind == "missing":
        cure = ": name the folder of a model that has it, model.init=FOLDER" if loc[0] == "model" else ""
        return [f"{key}: is missing, and has no default{cure}"]
    if kind in ("model_type", "dataclass_type") and model:
        return [f"{key} = {show(value)}: is a section with the keys {', '.join(model.model_fields)}"]
    return [f"{key} = {show(value)}: must be {_allowed(field, detail)}"]


def _unknown(key: str, value: Any, model: type[BaseModel] | None, root: type[ConfigFields]) -> str:
    place, _, leaf = key.rpartition(".")
    owners = [name for name, kind in built_in_sections(place).items() if leaf in kind.model_fields]
    if owners and model:
        choice = next(choice for choice in CHOICES if choice.place == place)
        keys = ", ".join(model.model_fields)
        return (
            f"{key} (given {show(value)}) is a key of {choice.at} = {' or '.join(owners)};"
            f" {_chosen(model, choice)} has {keys or 'no keys'}"
        )
    if key in dict(_known_keys(root)):  # dotted key in a file
        return f"unknown key '{key}' (given {show(value)}): in a file a section is a mapping; {place}: {{{leaf}: ...}}"
    close = nearest_keys(key, root)
    hint = f"; did you mean {' or '.join(close)}?" if close else f"; sections: {', '.join(Config.model_fields)}"
    return f"unknown key {key} (given {show(value)}){hint}"


def _value_error(loc: list[str], model: type[BaseModel] | None, text: str) -> str:
    """A section's own check names its fields without prefix; add the full path."""
    prefix = ".".join(loc)
    names = "|".join(map(re.escape, model.model_fields)) if model and prefix else ""
    full = re.sub(rf"(?<![.\w])({names})(?==| names)", rf"{prefix}.\1", text) if names else text
    return full if full != text or not prefix else f"{prefix}: {text}"


def _found(loc: list[str], root: type[ConfigFields]) -> tuple[list[str], FieldInfo | None, type[BaseModel] | None]:
    """The keys of ``loc``, the innermost field, and the section around it or around an unknown key."""
    keys: list[str] = []
    field, model = None, root
    for part in loc:
        keys.append(part)
        if model is None or part not in model.model_fields:
            break
        field = model.model_fields[part]
        model = section(field)
    return keys, field, model


def _allowed(field: FieldInfo | None, detail: dict[str, Any]) -> str:
    context = detail.get("ctx") or {}
    if detail["type"] == "literal_error" or (field and get_origin(field.annotation) is Literal):
        choices = [str(choice) for choice in get_args(field.annotation)] if field else [str(context.get("expected"))]
        close = difflib.get_close_matches(str(detail["input"]), choices, n=1)
        return f"one of {', '.join(choices)}" + (f"; did you mean {close[0]}?" if close else "")
    if detail["type"] == "string_pattern_mismatch":
        return f"text that matches {context['pattern']}"
    words = _TYPE_WORDS.get(detail["type"], "")
    bounds = [
        f"{sign} {getattr(part, name)}"
        for part in (field.metadata if field else [])
        for name, sign in _BOUNDS
        if getattr(part, name, None) is not None
    ]
    if bounds and (words or detail["type"].startswith(("greater", "less"))):
        return " ".join(filter(None, [words, " and ".join(bounds)]))
    if field and field.annotation and get_origin(field.annotation) is tuple:
        size = len(get_args(field.annotation))
        if get_args(field.annotation)[-1] is Ellipsis:
            return "a list, e.g. [http://127.0.0.1:8000]" if "urls" in str(detail["loc"]) else "a list"
        return f"a list of {size} numbers, e.g. {show(list(field.get_default(call_default_factory=True)))}"
    return words or f"valid ({detail['msg']})"


def nearest_keys(key: str, root: type[ConfigFields] = Config, count: int = 2) -> list[str]:
    """The valid dotted keys most similar to ``key``, in any section; best first."""
    key = key.lower()
    leaf = key.rpartition(".")[2]
    scored = []
    for known in dict(_known_keys(root)):
        whole = difflib.SequenceMatcher(None, key, known).ratio()
        last = difflib.SequenceMatcher(None, leaf, known.rpartition(".")[2]).ratio()
        scored.append((max(whole, last), whole, known))
    scored.sort(key=lambda item: (-item[0], -item[1], item[2]))
    best = scored[0][0]
    return [known for score, _, known in scored[:count] if score >= max(0.6, best - 0.02)]


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield prefix + name, field
        own = section(field)
        kinds = [*built_in_sections(prefix + name).values(), *([own] if own else [])]
        for kind in dict.fromkeys(kinds):
            yield from _known_keys(kind, f"{prefix}{name}.")


def _chosen(model: type[BaseModel], choice: Choice) -> str:
    """What ``choice`` names, whose section is ``model``."""
    field = model.model_fields.get(choice.key)
    if field is None:
        return f"the {choice.at} that was chosen"
    own = field.is_required()  # a class of the user's has no default name
    return f"{choice.at} = {f'{model.__module__}:{model.__qualname__}' if own else field.default}"


def leaves(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def show(value: Any, most: int = 80) -> str:
    """``value`` for a message: short, without credentials or control characters."""
    text = shown(without_credentials(json.dumps(value, ensure_ascii=False, default=str)))
    return text if len(text) <= most else text[: most - 3] + "..."
