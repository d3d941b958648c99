"""Prompts and answers as chat messages, in the form of verl's and TRL's data sets."""

from __future__ import annotations

import re
from typing import Any

from envs.data.problems import Say

_CURE = 'write {"role": "user", "content": "..."}'
_SEEN = ("image", "images", "video", "videos", "audio", "audios")  # columns of pictures and sounds
_PLACE = re.compile("<(image|video|audio)>")  # their place in the text, as verl and LLaVA write it
_ROLES = ("system", "developer", "user", "assistant")


def prompt_of(messages: list[Any], field: str, say: Say) -> str | None:
    """The question of ``messages``; None if there is none, after reporting to ``say``.

    It is the text of system and user, separated by a blank line. A final answer (TRL's ``messages``) is not
    part of it; a conversation of several turns is refused.
    """
    parts: list[str] = []
    asked = answered = False
    for number, message in enumerate(messages):
        at = f"{field}[{number}]"
        read = _message(message, at, say)
        if read is None:
            return None
        role, text = read
        if role == "assistant":
            answered = True
            continue
        if answered:
            say(f"{at}.role", "comes after an answer, and a task is one question; keep one message of the user", role)
            return None
        asked |= role == "user" and bool(text.strip())
        parts.append(text)
    if not asked:
        say(field, f"holds no message of the user, or an empty one; {_CURE}")
        return None
    return "\n\n".join(part for part in parts if part.strip())


def no_pictures(row: dict[str, Any], say: Say) -> None:
    """Report pictures and sounds beside a prompt: they would not be shown, and the rest is another task."""
    for name, value in row.items():
        if str(name).casefold() in _SEEN and isinstance(value, list | dict | bytes) and value:
            say(str(name), "only text can be asked; leave rows with pictures and sounds out")
            return
    prompt = row.get("prompt")
    if isinstance(prompt, str) and (found := _PLACE.search(prompt)):
        say("prompt", f"stands for a picture or a sound with {found[0]}; only text can be asked", prompt)


def answer_of(messages: list[Any], field: str, say: Say) -> str | None:
    """The text of the last of ``messages``, the assistant's; None if it is not one."""
    at = f"{field}[{len(messages) - 1}]"
    read = _message(messages[-1], at, say)
    if read is None:
        return None
    role, text = read
    if role != "assistant":
        say(f"{at}.role", "must be assistant: the last message is the answer", role)
        return None
    return text


def are_messages(value: Any) -> bool:
    """Whether ``value`` is a list of objects, as messages are."""
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) for part in value)


def _message(message: Any, at: str, say: Say) -> tuple[str, str] | None:
    """Role and text of one message."""
    if not isinstance(message, dict):
        say(at, f"must be a message; {_CURE}", message)
        return None
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        say(f"{at}.role", "must be one of system, user, assistant", role)
        return None
    if isinstance(content, list):
        for number, part in enumerate(content):
            if (
                not isinstance(part, dict)
                or part.get("type", "text") != "text"
                or not isinstance(part.get("text"), str)
            ):
                say(f"{at}.content[{number}]", "only text can be asked; leave pictures and sounds out", part)
                return None
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        say(f"{at}.content", f"must be text; {_CURE}", content)
        return None
    return role, content
