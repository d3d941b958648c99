"""The part of OpenAI's chat completions that the gateway speaks: requests checked and read, answers and chunks built.

What would change the meaning of an answer and cannot be done is refused by name; fields that only describe the caller
are passed over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.chat_parser import ParsedTurn
from model.chat_tokens import dump_arguments
from model.tokenizer import Tokenizer
from rollouts.engine.base import Completion, Finish

Message = dict[str, Any]
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
# field -> values that mean nothing; anything else in them is refused
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ((), ""),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
    "functions": ((),),
    "function_call": (),
    "audio": (),
    "modalities": (("text",),),
    "parallel_tool_calls": (True,),
    "web_search_options": (),
}
_CHUNK = 64  # characters of one chunk


class BadRequest(ValueError):
    """The request cannot be served as it is: ``field`` and the reason."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A request as the gateway uses it. ``messages`` in the normal form of :func:`normal_message`."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...]
    model: str
    temperature: float
    top_p: float
    max_tokens: int | None
    seed: int | None
    stream: bool
    with_usage: bool
    logprobs: bool
    episode: str | None
    task: str | None


def read_request(tree: Any, headers: Mapping[str, str]) -> ChatRequest:
    """The request in ``tree``. The episode comes from the header ``x-parl-episode``, ``metadata.episode`` or ``user``.

    BadRequest names what is wrong.
    """
    if not isinstance(tree, dict):
        raise BadRequest("body", "must be a JSON object")
    for field, neutral in _NEUTRAL.items():
        value = tree.get(field)
        if value is not None and (tuple(value) if isinstance(value, list) else value) not in neutral:
            raise BadRequest(field, f"{value!r} is not supported; leave it out")
    messages = tree.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages", "must be a list with at least one message")
    choice = tree.get("tool_choice")
    if choice not in (None, "auto", "none"):
        raise BadRequest("tool_choice", f"{choice!r} is not supported, only auto and none are")
    metadata = tree.get("metadata") or {}
    episode = headers.get("x-parl-episode") or metadata.get("episode") or tree.get("user")
    task = headers.get("x-parl-task") or metadata.get("task")
    return ChatRequest(
        messages=tuple(normal_message(message, f"messages[{i}]") for i, message in enumerate(messages)),
        tools=() if choice == "none" else _tools(tree.get("tools")),
        model=str(tree.get("model") or ""),
        temperature=_number(tree, "temperature", 1.0, 0.0, 2.0),
        top_p=_number(tree, "top_p", 1.0, 0.0, 1.0),
        max_tokens=_count(tree, "max_completion_tokens") or _count(tree, "max_tokens"),
        seed=tree.get("seed") if isinstance(tree.get("seed"), int) else None,
        stream=bool(tree.get("stream")),
        with_usage=bool((tree.get("stream_options") or {}).get("include_usage")),
        logprobs=bool(tree.get("logprobs")),
        episode=None if episode is None else str(episode),
        task=None if task is None else str(task),
    )


def normal_message(message: Any, where: str) -> Message:
    """A message with what the chat format renders and nothing else, so that equal conversations compare equal."""
    role = _ROLES.get(str(message.get("role"))) if isinstance(message, dict) else None
    if role is None:
        raise BadRequest(where, f"needs a role of {', '.join(_ROLES)}")
    out: Message = {"role": role, "content": _text(message.get("content"), where)}
    if message.get("name"):
        out["name"] = str(message["name"])
    if role == "tool":
        if not message.get("tool_call_id"):
            raise BadRequest(where, "a tool message needs tool_call_id")
        out["tool_call_id"] = str(message["tool_call_id"])
    if role == "assistant" and message.get("tool_calls"):
        out["tool_calls"] = [_call(call, where) for call in message["tool_calls"]]
    return out


def assistant_message(turn: ParsedTurn, raw: str) -> Message:
    """The message that a turn is answered with; ``raw``: the text of a malformed one."""
    if turn.malformed:
        return {"role": "assistant", "content": raw}
    message: Message = {"role": "assistant", "content": turn.content}
    if turn.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dump_arguments(call.arguments)},
            }
            for call in turn.tool_calls
        ]
    return message


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer on its way out. ``extra`` goes beside OpenAI's fields, under ``parl``."""

    identifier: str
    model: str
    message: Message
    reasoning: str
    completion: Completion
    prompt_tokens: int
    logprobs: bool
    extra: dict[str, Any]
    tokenizer: Tokenizer

    @property
    def finish(self) -> str:
        """OpenAI's finish reason."""
        if self.completion.finish is Finish.LENGTH:
            return "length"
        return "tool_calls" if self.message.get("tool_calls") else "stop"

    @property
    def usage(self) -> dict[str, int]:
        """Tokens in and out."""
        new = len(self.completion.tokens)
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": new, "total_tokens": self.prompt_tokens + new}

    def body(self) -> dict[str, Any]:
        """The answer in one piece."""
        message = {**self.message, "content": self.message["content"] or None, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        choice = {"index": 0, "message": message, "finish_reason": self.finish, "logprobs": self._logprobs()}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage}

    def chunks(self, with_usage: bool) -> Iterator[dict[str, Any]]:
        """The answer as a stream's chunks. The turn is complete before the first is sent."""
        yield self._chunk({"role": "assistant", "content": ""})
        if self.reasoning:
            yield self._chunk({"reasoning_content": self.reasoning})
        for piece in _pieces(self.message["content"]):
            yield self._chunk({"content": piece})
        for index, call in enumerate(self.message.get("tool_calls") or ()):
            opening = {"index": index, **call, "function": {"name": call["function"]["name"], "arguments": ""}}
            yield self._chunk({"tool_calls": [opening]})
            for piece in _pieces(call["function"]["arguments"]):
                yield self._chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
        yield self._chunk({}, finish=self.finish, logprobs=self._logprobs())
        if with_usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": self.usage}

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.identifier, "object": kind, "created": int(time.time()), "model": self.model}
        return {**head, "parl": self.extra}

    def _chunk(self, delta: dict[str, Any], *, finish: str | None = None, logprobs: Any = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        items = []
        for token, logprob in zip(self.completion.tokens, self.completion.logprobs, strict=True):
            text = "".join(part for part, _ in self.tokenizer.pieces([token]))
            items.append({"token": text, "logprob": logprob, "bytes": list(text.encode()), "top_logprobs": []})
        return {"content": items, "refusal": None}


def _pieces(text: str) -> Iterator[str]:
    yield from (text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK))


def _text(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise BadRequest(where, "content must be text or a list of parts")
    parts: Sequence[Any] = content
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else part
            raise BadRequest(where, f"a part of type {kind!r} is not supported, only text is")
    return "".join(str(part.get("text", "")) for part in parts)


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not function.get("name"):
        raise BadRequest(where, "each of tool_calls needs function.name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            raise BadRequest(where, f"arguments of {function['name']} are not JSON") from None
    if not isinstance(arguments, dict):
        raise BadRequest(where, f"arguments of {function['name']} are not a JSON object")
    named = {"name": str(function["name"]), "arguments": dump_arguments(arguments)}
    return {"id": str(call.get("id") or ""), "type": "function", "function": named}


def _tools(tools: Any) -> tuple[dict[str, Any], ...]:
    if tools is None:
        return ()
    good = isinstance(tools, list) and all(
        isinstance(tool, dict) and tool.get("type") == "function" and (tool.get("function") or {}).get("name")
        for tool in tools
    )
    if not good:
        raise BadRequest("tools", "must be a list of {type: function, function: {name, description, parameters}}")
    return tuple(tools)


def _number(tree: Mapping[str, Any], field: str, default: float, low: float, high: float) -> float:
    value = tree.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise BadRequest(field, f"{value!r} must be a number from {low:g} to {high:g}")
    return float(value)


def _count(tree: Mapping[str, Any], field: str) -> int | None:
    value = tree.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest(field, f"{value!r} must be a whole number above 0")
    return value
