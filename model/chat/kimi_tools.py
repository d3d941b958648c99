"""Tool declarations in the TypeScript style that K2.5 reads, from OpenAI ``tools`` entries.

Keys are put in sorted order first, so the text does not depend on how a schema was written down; required parameters
come before optional ones. The rules follow the K2.5 chat template and are held to its published renderings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_INDENT = "  "
_DEFS = "#/$defs/"
_ROOT = "parameters"  # the name of a schema that refers to itself
_SCALARS = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null"}
_CONSTRAINTS = {
    "string": ("maxLength", "minLength", "pattern"),
    "number": ("maximum", "minimum"),
    "integer": ("maximum", "minimum"),
    "array": ("maxItems", "minItems"),
}


def declare_tools(tools: Iterable[Mapping[str, Any]]) -> str:
    """The declaration of all ``function`` entries of ``tools``; an empty string where there are none."""
    functions = [_declare_function(tool["function"]) for tool in tools if tool.get("type") == "function"]
    if not functions:
        return ""
    return "# Tools\n\n## functions\nnamespace functions {\n" + "\n".join(functions) + "\n}\n"


def _declare_function(function: Mapping[str, Any]) -> str:
    schema = _sorted(function.get("parameters") or {})
    lines = []
    recursive = _refers_to_itself(schema)
    arguments = _object(schema, "", required_first=not recursive)  # the reference rendering of such a root, as it is
    if recursive:
        lines.append(f"interface {_ROOT} {arguments}")
        arguments = _ROOT
    for name, definition in schema.get("$defs", {}).items():
        lines += _comment(definition.get("description", ""), "")
        lines.append(f"interface {name} {_type(definition, '')}")
    lines += _comment(function.get("description") or "", "")
    lines.append(f"type {function['name']} = (_: {arguments}) => any;")
    return "\n".join(lines)


def _type(schema: Any, indent: str) -> str:
    """The TypeScript type of one JSON schema, as written after ``indent``."""
    if not isinstance(schema, Mapping):  # true: anything goes; false: nothing does
        return "never" if schema is False else "any"
    if "$ref" in schema:
        return _reference(schema["$ref"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " | ".join(_type(option, indent) for option in schema[union])
    if "enum" in schema:
        return " | ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in schema["enum"])
    kind = schema.get("type")
    if isinstance(kind, Sequence) and not isinstance(kind, str):
        return " | ".join(_type({**schema, "type": one}, indent) for one in kind)
    if kind == "object" or (kind is None and "properties" in schema):
        return _object(schema, indent)
    if kind == "array":
        return _array(schema, indent)
    return _SCALARS.get(kind or "", "any")


def _object(schema: Mapping[str, Any], indent: str, *, required_first: bool = True) -> str:
    inner = indent + _INDENT
    properties = schema.get("properties") or {}
    required = set(schema.get("required") or ())
    names = sorted(properties, key=lambda name: name not in required) if required_first else list(properties)
    fields = [_field(name, properties[name], "" if name in required else "?", inner) for name in names]
    if "additionalProperties" in schema:
        fields.append(f"{inner}[k: string]: {_type(schema['additionalProperties'], inner)}")
    if not fields:
        return "{}"
    return "{\n" + ",\n".join(fields) + f"\n{indent}}}"


def _field(name: str, schema: Any, mark: str, indent: str) -> str:
    lines = _notes(schema, indent)
    if isinstance(schema, Mapping) and "default" in schema:
        lines.append(f"{indent}// Default: {_default(schema['default'])}")
    return "\n".join([*lines, f"{indent}{name}{mark}: {_type(schema, indent)}"])


def _array(schema: Mapping[str, Any], indent: str) -> str:
    items = schema.get("items", True)
    inner = indent + _INDENT
    notes = _notes(items, inner)
    if not notes:
        return f"Array<{_type(items, indent)}>"
    return "\n".join(["Array<", *notes, f"{inner}{_type(items, inner)}", f"{indent}>"])


def _notes(schema: Any, indent: str) -> list[str]:
    """Comment lines of a schema: its description, then its limits in alphabetical order."""
    if not isinstance(schema, Mapping):
        return []
    lines = _comment(schema.get("description", ""), indent)
    kind = schema.get("type")
    plain = isinstance(kind, str) and not any(key in schema for key in ("$ref", "anyOf", "oneOf", "enum"))
    limits = [f"{key}: {schema[key]}" for key in _CONSTRAINTS.get(str(kind), ()) if key in schema] if plain else []
    return [*lines, f"{indent}// {', '.join(limits)}"] if limits else lines


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}// {line}" if line else "" for line in text.split("\n")] if text else []


def _default(value: Any) -> str:
    return str(value) if value is None or isinstance(value, bool) else json.dumps(value, ensure_ascii=False)


def _reference(ref: str) -> str:
    if ref == "#":
        return _ROOT
    return ref[len(_DEFS) :] if ref.startswith(_DEFS) else "any"


def _refers_to_itself(node: Any) -> bool:
    if isinstance(node, Mapping):
        return node.get("$ref") == "#" or any(_refers_to_itself(value) for value in node.values())
    return isinstance(node, list) and any(_refers_to_itself(value) for value in node)


def _sorted(node: Any) -> Any:
    """``node`` with the keys of every object in sorted order; lists keep theirs."""
    if isinstance(node, Mapping):
        return {key: _sorted(node[key]) for key in sorted(node)}
    return [_sorted(value) for value in node] if isinstance(node, list | tuple) else node
