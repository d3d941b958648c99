"""What :mod:`model.chat.bridge.template` cuts out of renderings, and what it gives to templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from model.chat.bridge.masks import Masks, Part
from model.chat.calls.base import Turn, plain
from model.chat.reading import JSON, Malformed

ASKED = {"role": "user", "content": "zqparlaskzq"}  # the question of tiny conversations
THINK, END_THINK = "<think>", "</think>"
CLOSED = re.compile(rf"^\s*{THINK}\s*{END_THINK}\n*")  # reasoning without a word
THOUGHTS = ((THINK, "", END_THINK), ("<|channel>", "thought", "<channel|>"))  # the second is Gemma's


def behind(prompt: Sequence[Part], whole: Sequence[Part]) -> tuple[list[Part], bool]:
    """The parts of ``whole`` behind the ``prompt`` of a turn, and whether the prompt stands there as it is.

    Where it does not, what is missing is reasoning that it has opened, or opened and closed.
    """
    start = "".join(part.text for part in prompt)  # its one message holds no mask
    if not whole or whole[0].mask is not None:
        raise ValueError("the chat template begins in an outside text")
    text = whole[0].text
    if text.startswith(start):
        return [Part(text[len(start) :]), *whole[1:]], True
    at = start.rfind(THINK)
    if at >= 0 and not start[at:].replace(THINK, "").replace(END_THINK, "").strip() and text.startswith(start[:at]):
        return [Part(text[at:]), *whole[1:]], False
    raise ValueError("the chat template writes a turn otherwise than its own prompt begins it")


def same_start(prompt: Sequence[Part], longer: Sequence[Part]) -> bool:
    """Whether a longer conversation begins as the ``prompt`` of its first turn does, to the user's message."""
    asked = f"{prompt[0].text}".rpartition(ASKED["content"])[0]
    return bool(asked) and longer[0].text.startswith(asked)


def thought_of(turn: Turn, opened: bool) -> tuple[str, str]:
    """Reasoning and the rest of a turn; ``opened``: the prompt has opened it."""
    for begin, word, end in THOUGHTS:
        thought, found, rest = turn.text.partition(turn.mark(end))
        start = turn.mark(begin) + word
        if found and (opened or thought.lstrip("\n").startswith(start)):
            return plain(thought.lstrip("\n").removeprefix(start)).strip("\n"), rest.lstrip("\n")
    if opened:
        raise Malformed(f"cut off in the reasoning: no {END_THINK}")
    return "", turn.text


def tools_named(names: Iterable[str]) -> list[dict[str, Any]]:
    """Tools of these names, for templates that look whether there are any."""
    empty = {"type": "object", "properties": {}}
    functions = [{"name": name, "description": "-", "parameters": empty} for name in dict.fromkeys(names)]
    return [{"type": "function", "function": function} for function in functions]


def masked_content(masks: Masks, content: Any) -> str:
    """The mask of a message's text; nothing where there is none. ValueError for pictures."""
    if content is None or isinstance(content, str):
        return masks.put(content) if content else ""
    if other := next((part["type"] for part in content if part["type"] != "text"), None):
        raise ValueError(f"content part of type {other!r}: the template is given text only")
    return masks.put("".join(part["text"] for part in content))


def parsed(arguments: str) -> Any:
    """Arguments that stand as text in a history; what is no JSON becomes an argument."""
    try:
        return JSON.decode(arguments)
    except (ValueError, RecursionError):
        return {"arguments": arguments}
