"""Calls written as JSON: Hermes (Qwen2.5, Qwen3), Llama 3, Mistral, DeepSeek, Cohere."""

from __future__ import annotations

from typing import Any

from model.chat.calls.base import Said, Turn, items_of, json_end, named, object_of, plain, sections
from model.chat.reading import Malformed


def hermes(turn: Turn) -> Said:
    """``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, one after the other."""
    content, bodies = sections(turn, "<tool_call>", "</tool_call>")
    calls = tuple(named(object_of(body), "name", "arguments") for body in bodies)
    return Said(content=content.removesuffix("\n") if calls else content, calls=calls)


def llama(turn: Turn) -> Said:
    """The whole turn is ``{"name": …, "parameters": {…}}``, perhaps after ``<|python_tag|>``. One call a turn."""
    text = turn.text.removeprefix(turn.mark("<|python_tag|>"))
    if text is turn.text and not text.lstrip().startswith('{"name"'):
        return Said(content=plain(text))
    return Said(calls=(named(object_of(text), "name", "parameters", more=("type",)),))


def mistral(turn: Turn) -> Said:
    """``[TOOL_CALLS][{"name": …, "arguments": {…}, "id": …}, …]``."""
    content, found, rest = turn.text.partition(turn.mark("[TOOL_CALLS]"))
    if not found:
        return Said(content=plain(content))
    calls = items_of(rest)
    if not isinstance(calls, list) or not calls:
        raise Malformed("the calls are not a JSON list")
    return Said(content=plain(content), calls=tuple(named(one, "name", "arguments", more=("id",)) for one in calls))


def mistral_named(turn: Turn) -> Said:
    """``[TOOL_CALLS]name[ARGS]{…}`` or ``[TOOL_CALLS]name[CALL_ID]id[ARGS]{…}``, one after the other."""
    content, *rest = turn.text.split(turn.mark("[TOOL_CALLS]"))
    form = turn.pattern(r"(.*?)(?:«[CALL_ID]»(.*?))?«[ARGS]»(.*)")
    calls: list[tuple[Any, dict[str, Any]]] = []
    for body in rest:
        if (found := form.fullmatch(body)) is None:
            raise Malformed("a call must be a name, [ARGS] and arguments")
        calls.append((plain(found[1]).strip(), object_of(found[3])))
    return Said(content=plain(content), calls=tuple(calls))


def deepseek(turn: Turn) -> Said:
    """DeepSeek V3 (``function<｜tool▁sep｜>name`` and fenced JSON) and V3.1 (``name<｜tool▁sep｜>{…}``)."""
    content, bodies = sections(turn, "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
    if len(bodies) > 1:
        raise Malformed("two sections of calls")
    _, calls = sections(_within(turn, bodies), "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
    if bodies and not calls:
        raise Malformed("the section of calls has none")
    fenced = turn.pattern(r"function«<｜tool▁sep｜>»([^\n]*)\n```json\n(.*)\n```")
    bare = turn.pattern(r"(.*?)«<｜tool▁sep｜>»(.*)")
    read = []
    for body in calls:
        if (found := fenced.fullmatch(body) or bare.fullmatch(body)) is None:
            raise Malformed("a call must be a name, <｜tool▁sep｜> and arguments")
        read.append((plain(found[1]), object_of(found[2])))
    return Said(content=content, calls=tuple(read))


def cohere(turn: Turn) -> Said:
    """``<|START_ACTION|>[{"tool_call_id": …, "tool_name": …, "parameters": {…}}, …]<|END_ACTION|>``."""
    content, bodies = sections(turn, "<|START_ACTION|>", "<|END_ACTION|>")
    items = [one for body in bodies for one in items_of(body)]
    return Said(
        content=content,
        calls=tuple(named(one, "tool_name", "parameters", more=("tool_call_id",)) for one in items),
    )


def listed(turn: Turn) -> Said:
    """The whole turn is a JSON list or object of ``{"name": …, "arguments": {…}}``: small models without markers."""
    text = turn.text.strip()
    if json_end(text) != len(text) or not text.startswith(("[{", '{"name"')):
        return Said(content=plain(turn.text))
    items = items_of(text if text.startswith("[") else f"[{text}]")
    return Said(calls=tuple(named(one, "name", "arguments") for one in items))


def _within(turn: Turn, bodies: list[str]) -> Turn:
    return Turn(text="".join(bodies), special=turn.special, schemas=turn.schemas)
