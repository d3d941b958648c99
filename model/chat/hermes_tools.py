"""Declarations of tools as ChatML templates with ``<tool_call>`` show them: Qwen2.5's and Qwen3's words.

A tool is declared by its JSON schema, as in the template, or by one line, ``search(query: string, limit?: integer):
Searches the web.``, which a policy has to be taught and which takes a quarter fewer tokens; descriptions of single
parameters are left out there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

HEAD = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
FOOT = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments within"
    ' <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)


def declare(tools: Iterable[Mapping[str, Any]], *, lines: bool) -> str:
    """The declaration of ``tools`` (OpenAI's entries), which :data:`FOOT` follows; an empty string without any.

    ``lines``: one line a tool.
    """
    declared = [signature(tool["function"]) if lines else to_json(tool) for tool in tools]
    return HEAD + "".join(f"\n{one}" for one in declared) if declared else ""


def to_json(value: Any) -> str:
    """JSON as chat templates write it (``tojson`` of transformers): characters as they are, blanks after separators."""
    return json.dumps(value, ensure_ascii=False)


def signature(function: Mapping[str, Any]) -> str:
    """One line: ``name(parameter: type, optional?: type): description``."""
    said = " ".join(str(function.get("description") or "").split())
    return f"{function['name']}({_fields(function.get('parameters') or {})})" + (f": {said}" if said else "")


def _fields(schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required") or ())
    fields = (schema.get("properties") or {}).items()
    return ", ".join(f"{name}{'' if name in required else '?'}: {_type(one)}" for name, one in fields)


def _type(schema: Any) -> str:
    if not isinstance(schema, Mapping):
        return "any"
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return "|".join(_type(one) for one in schema[union])
    if "enum" in schema:
        return "|".join(to_json(value) for value in schema["enum"])
    kind = schema.get("type", "object" if "properties" in schema else "any")
    if isinstance(kind, list):
        return "|".join(_type({**schema, "type": one}) for one in kind)
    if kind == "array":
        return f"{_type(schema.get('items'))}[]"
    return f"{{{_fields(schema)}}}" if kind == "object" and schema.get("properties") else str(kind)
