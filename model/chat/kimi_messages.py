"""Reads a conversation back from its pieces: what a trace's tokens say, as messages for a chat server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from model.chat.base import Piece
from model.chat.kimi_tokens import (
    CALL_ARGUMENT,
    CALL_BEGIN,
    END_THINK,
    IM_ASSISTANT,
    IM_END,
    IM_SYSTEM,
    IM_USER,
    RETURN_OF,
)


def messages_of(pieces: Iterable[Piece], ids: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """The conversation that the chat format's ``pieces`` hold, without the declaration of tools.

    ``ids`` gives calls their server's ids back. Control tokens are known as such: no text can pose as a message.
    """
    messages: list[dict[str, Any]] = []
    frame: list[Piece] = []
    for piece in pieces:  # what follows the last IM_END is the generation prompt
        if piece != (IM_END, True):
            frame.append(piece)
            continue
        message = _message(frame, ids or {}, bool(messages) and messages[-1]["role"] in ("assistant", "tool"))
        messages += [message] if message else []
        frame = []
    return messages


def _message(frame: list[Piece], ids: Mapping[str, str], called: bool) -> dict[str, Any] | None:
    """One message; a system frame after an assistant's (``called``) is a tool's result. None: declaration of tools."""
    opening, name, body = frame[0][0], frame[1][0], frame[3:]
    text = "".join(part for part, control in body if not control)
    if opening == IM_ASSISTANT:
        return _assistant(body, ids)
    if opening == IM_USER:
        return {"role": "user", "content": text}
    if opening == IM_SYSTEM and called and text.startswith(RETURN_OF):
        identifier, _, content = text[len(RETURN_OF) :].partition("\n")
        return {"role": "tool", "tool_call_id": ids.get(identifier, identifier), "content": content}
    return None if name == "tool_declare" else {"role": "system", "content": text}


def _assistant(body: list[Piece], ids: Mapping[str, str]) -> dict[str, Any]:
    content, calls, at = "", [], (END_THINK, True)
    for piece in body:
        if piece[1]:
            at = piece
            if piece[0] == CALL_BEGIN:
                calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        elif at[0] == END_THINK:
            content += piece[0]
        elif at[0] == CALL_BEGIN:
            calls[-1]["id"] = ids.get(piece[0], piece[0])
            calls[-1]["function"]["name"] = piece[0].removeprefix("functions.").rpartition(":")[0]
        elif at[0] == CALL_ARGUMENT:
            calls[-1]["function"]["arguments"] = piece[0]
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    return message | ({"tool_calls": calls} if calls else {})
