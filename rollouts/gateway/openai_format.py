"""The gateway's part of OpenAI's chat completions: reads requests, builds answers and chunks.

Unsupported fields that would change an answer are refused by name; fields that only describe the caller are
ignored.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from model.chat.base import ParsedTurn, Vocabulary, dump_arguments
from rollouts.engine.base import Completion, Finish
from rollouts.gateway.openai_fields import (
    check_unused,
    count,
    flag,
    mapping,
    name,
    number,
    seed,
    sequence,
    text,
    wrong_type,
)
from rollouts.gateway.openai_tools import read_tools
from rollouts.gateway.request_json import BadRequest, parse_text, short

Message = dict[str, Any]
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_NAMED = ("episode", "task")  # in a header x-parl-NAME or metadata.NAME
_COLDEST = 1e-6  # temperature or top-p below this overflows float32, and is greedy
_CHUNK = 64  # characters of one chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A parsed request. ``messages`` in the normal form of :func:`normal_message`."""

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
    """Parse ``tree``. The episode comes from the header ``x-parl-episode``, ``metadata.episode`` or ``user``.

    BadRequest names what is wrong.
    """
    if not isinstance(tree, dict):
        raise BadRequest("body", "must be a JSON object")
    check_unused(tree)
    messages = tree.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages", "must be a list with at least one message")
    choice = text(tree, "tool_choice") if not isinstance(tree.get("tool_choice"), dict) else tree["tool_choice"]
    if choice not in (None, "auto", "none"):
        raise BadRequest("tool_choice", f"{short(choice)} is not supported, only auto and none are")
    tools = read_tools(tree.get("tools"))
    temperature = number(tree, "temperature", 1.0, 0.0, 2.0)
    newer, older = count(tree, "max_completion_tokens"), count(tree, "max_tokens")
    episode, task = _names(tree, headers)
    return ChatRequest(
        messages=tuple(normal_message(message, f"messages[{i}]") for i, message in enumerate(messages)),
        tools=() if choice == "none" else tools,
        model=text(tree, "model") or "",
        temperature=temperature if temperature >= _COLDEST else 0.0,
        top_p=max(number(tree, "top_p", 1.0, 0.0, 1.0), _COLDEST),
        max_tokens=newer or older,
        seed=seed(tree),
        stream=flag(tree, "stream"),
        with_usage=flag(mapping(tree, "stream_options"), "include_usage", "stream_options"),
        logprobs=flag(tree, "logprobs"),
        episode=episode,
        task=task,
    )


def _names(tree: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Names of the episode and the task; all given names are checked."""
    metadata = mapping(tree, "metadata")
    for key in metadata:
        text(metadata, key, "metadata")
    found = {
        field: _header(headers, f"x-parl-{field}") or name(text(metadata, field), f"metadata.{field}")
        for field in _NAMED
    }
    user = text(tree, "user")
    return found["episode"] or name(user, "user"), found["task"]


def _header(headers: Mapping[str, str], field: str) -> str | None:
    """A name in a header, whose bytes are UTF-8."""
    try:
        return name(headers.get(field, "").encode("latin-1").decode(), field)
    except UnicodeError:
        raise BadRequest(field, "is not UTF-8") from None


def normal_message(message: Any, where: str) -> Message:
    """A message reduced to what the chat format renders, so that equal conversations compare equal."""
    if not isinstance(message, dict):
        raise wrong_type(where, message, dict)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRequest(f"{where}.role", f"{short(role)} must be one of {', '.join(_ROLES)}")
    role = _ROLES[role]
    out: Message = {"role": role, "content": _content(message.get("content"), f"{where}.content")}
    if text(message, "name", where):
        out["name"] = message["name"]
    if role == "tool":
        if not text(message, "tool_call_id", where):
            raise BadRequest(f"{where}.tool_call_id", "a tool message needs tool_call_id")
        out["tool_call_id"] = message["tool_call_id"]
    calls = sequence(message, "tool_calls", where)
    if calls and role == "assistant":
        out["tool_calls"] = [_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls)]
    if message.get("function_call") is not None:
        raise BadRequest(f"{where}.function_call", "is not supported, use tool_calls")
    return out


def assistant_message(turn: ParsedTurn, raw: str) -> Message:
    """The message for a turn; ``raw``: the text of a malformed one."""
    if turn.malformed:
        return {"role": "assistant", "content": raw}
    message: Message = {"role": "assistant", "content": turn.content}
    if turn.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dumped(call.arguments)},
            }
            for call in turn.tool_calls
        ]
    return message


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer. ``extra`` goes beside OpenAI's fields, under ``parl``."""

    identifier: str
    model: str
    message: Message
    reasoning: str
    completion: Completion
    prompt_tokens: int
    logprobs: bool
    extra: dict[str, Any]
    tokenizer: Vocabulary

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
        """The answer as one JSON object."""
        message = {**self.message, "content": self.message["content"] or None, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        choice = {"index": 0, "message": message, "finish_reason": self.finish, "logprobs": self._logprobs()}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self.usage}

    def chunks(self, with_usage: bool) -> Iterator[dict[str, Any]]:
        """The answer as chunks of a stream. The turn is complete before the first is sent."""
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
            known = token < self.tokenizer.vocab_size
            text = "".join(part for part, _ in self.tokenizer.pieces([token])) if known else ""
            exact = list(self.tokenizer.decode_bytes([token])) if known else []  # works for a part of a character
            items.append({"token": text, "logprob": logprob, "bytes": exact, "top_logprobs": []})
        return {"content": items, "refusal": None}


def _pieces(text: str) -> Iterator[str]:
    yield from (text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK))


def _content(content: Any, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise BadRequest(where, f"{short(content)} must be text or a list of parts")
    for index, part in enumerate(content):
        if not isinstance(part, dict):
            raise wrong_type(f"{where}[{index}]", part, dict)
        if part.get("type") != "text":
            raise BadRequest(f"{where}[{index}].type", f"{short(part.get('type'))} is not supported, only text is")
        if not isinstance(part.get("text"), str):
            raise wrong_type(f"{where}[{index}].text", part.get("text"), str)
    return "".join(part["text"] for part in content)


def _call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise wrong_type(where, call, dict)
    if call.get("type") not in (None, "function"):
        raise BadRequest(f"{where}.type", f"{short(call['type'])} is not supported, only function is")
    identifier, function, inner = text(call, "id", where), call.get("function"), f"{where}.function"
    if not isinstance(function, dict):
        raise wrong_type(inner, function, dict)
    if not text(function, "name", inner):
        raise BadRequest(f"{inner}.name", "a call needs the name of its function")
    arguments = function.get("arguments")
    arguments = {} if arguments in (None, "") else arguments
    if isinstance(arguments, str):
        try:
            arguments = parse_text(arguments)
        except ValueError as error:
            raise BadRequest(f"{inner}.arguments", f"are not JSON: {error}") from None
    if not isinstance(arguments, dict):
        raise BadRequest(f"{inner}.arguments", f"{short(arguments)} are not a JSON object")
    named = {"name": function["name"], "arguments": dumped(arguments)}
    return {"id": identifier or "", "type": "function", "function": named}


def dumped(arguments: Mapping[str, Any]) -> str:
    """Arguments as UTF-8 text: a lone surrogate, which a policy may write, stays an escape."""
    return dump_arguments(arguments).encode("utf-8", "backslashreplace").decode()
