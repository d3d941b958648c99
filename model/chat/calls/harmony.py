"""gpt-oss' harmony: messages in channels. Reasoning is ``analysis``, the answer ``final``, calls go to a recipient."""

from __future__ import annotations

import re
from typing import Any

from model.chat.calls.base import Said, Turn, object_of, plain
from model.chat.reading import Malformed

_TO = re.compile(r"\bto=(?:functions\.)?([^\s]+)")


def harmony(turn: Turn) -> Said:
    """``<|channel|>analysis<|message|>…<|end|>``, then ``<|start|>assistant to=functions.NAME`` and a message of JSON.

    The turn's own end is taken off already. One call a turn.
    """
    if not turn.has("<|message|>"):
        raise Malformed("a turn without <|message|>")
    parts = turn.pattern(r"«<|end|>»(?:«<|start|>»assistant)?").split(turn.text)
    content, reasoning = "", ""
    calls: list[tuple[Any, dict[str, Any]]] = []
    for part in parts:
        header, found, body = part.partition(turn.mark("<|message|>"))
        if not found or calls:
            raise Malformed("a message without <|message|>" if not found else "text after a call")
        channel = header.partition(turn.mark("<|channel|>"))[2]
        words = "".join(piece if i % 2 == 0 else " " for i, piece in enumerate(re.split("\ue000(.*?)\ue001", header)))
        if to := _TO.search(words):
            calls.append((to[1], object_of(body)))
        elif channel.startswith("analysis"):
            reasoning += plain(body)
        elif channel.startswith(("final", "commentary")):
            content += plain(body)
        else:
            raise Malformed(f"an unknown channel: {plain(channel)[:20]!r}")
    return Said(content=content, reasoning=reasoning, calls=tuple(calls))
