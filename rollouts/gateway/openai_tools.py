"""Tools of a request, checked before the chat format renders their schemas.

A schema's text can be exponentially longer than the schema (a list of types renders the body once per type),
so the rendered schemas are counted first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rollouts.gateway.openai_fields import mapping, sequence, text, wrong_type
from rollouts.gateway.request_json import BadRequest, below, short

_MAX_NODES = 20_000  # rendered schemas per request
_UNIONS = ("anyOf", "oneOf")


def read_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """The functions in ``tools``, reduced to what the chat format renders."""
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise wrong_type("tools", tools, list)
    kept = tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools))
    nodes = sum(_count(tool["function"].get("parameters"), "tools", root=True) for tool in kept)
    if nodes > _MAX_NODES:
        raise BadRequest("tools", f"take {nodes} schemas to render, {_MAX_NODES} are possible")
    return kept


def _tool(tool: Any, path: str) -> dict[str, Any]:
    if not isinstance(tool, dict):
        raise wrong_type(path, tool, dict)
    if tool.get("type") != "function":
        raise BadRequest(f"{path}.type", f"{short(tool.get('type'))} is not supported, only function is")
    path = f"{path}.function"
    function = tool.get("function")
    if not isinstance(function, dict):
        raise wrong_type(path, function, dict)
    if not text(function, "name", path):
        raise BadRequest(f"{path}.name", "a function needs a name")
    kept: dict[str, Any] = {"name": function["name"]}
    if text(function, "description", path):
        kept["description"] = function["description"]
    parameters = function.get("parameters")
    if parameters is not None:
        if not isinstance(parameters, dict):
            raise wrong_type(f"{path}.parameters", parameters, dict)
        if (nodes := _count(parameters, f"{path}.parameters", root=True)) > _MAX_NODES:
            raise BadRequest(f"{path}.parameters", f"take {nodes} schemas to render, {_MAX_NODES} are possible")
        kept["parameters"] = parameters
    return {"type": "function", "function": kept}


def _count(schema: Any, path: str, *, root: bool = False) -> int:
    """Number of rendered schemas of ``schema``; BadRequest for a wrong type."""
    if not isinstance(schema, dict):
        return 0
    text(schema, "description", path)
    nodes = 1 + _children(schema, path, root=root)
    kinds = _kinds(schema, path)
    if not root:
        nodes *= max(1, sum(kind in ("object", "array") for kind in kinds))
    return nodes


def _children(schema: Mapping[str, Any], path: str, *, root: bool) -> int:
    nodes = 0
    if root and not isinstance(schema.get("$defs", {}), dict):
        raise wrong_type(below(path, "$defs"), schema["$defs"], dict)
    for field in ("properties", *(("$defs",) if root else ())):
        found = mapping(schema, field, path)
        nodes += sum(_count(item, below(below(path, field), name)) for name, item in found.items())
    for field in _UNIONS:
        found = schema.get(field, [])
        if not isinstance(found, list):
            raise wrong_type(below(path, field), found, list)
        nodes += sum(_count(item, below(below(path, field), index)) for index, item in enumerate(found))
    for field in ("items", "additionalProperties"):
        nodes += _count(schema.get(field), below(path, field))
    if not isinstance(schema.get("enum", []), list):
        raise wrong_type(below(path, "enum"), schema["enum"], list)
    if not all(isinstance(name, str) for name in sequence(schema, "required", path)):
        raise BadRequest(f"{path}.required", "must be a list of names")
    if not isinstance(schema.get("$ref", ""), str):
        raise wrong_type(below(path, "$ref"), schema["$ref"], str)
    return nodes


def _kinds(schema: Mapping[str, Any], path: str) -> list[Any]:
    kind = schema.get("type")
    kinds = kind if isinstance(kind, list) else [kind]
    if not all(one is None or isinstance(one, str) for one in kinds):
        raise BadRequest(f"{path}.type", f"{short(kind)} must be the name of a type, or a list of names")
    return kinds
