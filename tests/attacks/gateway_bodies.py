"""Invalid request bodies: each is refused with the path of the mistake, without affecting other requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attacks.base import Attack

AREA = "request bodies"
REWARD = "/v1/parl/episodes/mine/reward"
HALF = "\ud83d"
Q = {"role": "user", "content": "q"}


def function(**parameters: Any) -> dict[str, Any]:
    """A request with one tool of these parameters."""
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}


def called(**call: Any) -> dict[str, Any]:
    """A request with an assistant's message that made ``call``."""
    return {"messages": [Q, {"role": "assistant", "content": None, "tool_calls": [call]}, Q]}


def message(**changes: Any) -> dict[str, Any]:
    """A request with an additional message."""
    return {"messages": [Q, {"role": "user", "content": "x", **changes}]}


def nested(depth: int) -> str:
    """A list of lists as JSON."""
    return "[" * depth + "]" * depth


def arguments(text: str) -> bytes:
    """A request whose assistant called a tool with ``text`` as arguments, JSON as it is sent."""
    call = json.dumps(called(function={"name": "f", "arguments": "HERE"}))
    return call.replace('"HERE"', text).encode()


def types_bomb() -> dict[str, Any]:
    """A schema of a few hundred bytes that renders to 2^28 objects."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(14):
        schema = {"type": ["object", "array", "object", "array"], "properties": {"a": schema}}
    return function(properties={"a": schema})


# name -> (changes to a valid request, the path that must be named)
FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "metadata is a text": ({"metadata": "a"}, "metadata"),
    "metadata is a list": ({"metadata": ["a"]}, "metadata"),
    "metadata of a number": ({"metadata": {"episode": 7}}, "metadata.episode"),
    "stream_options is a list": ({"stream_options": [1]}, "stream_options"),
    "include_usage is a text": ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
    "stream is a text": ({"stream": "false"}, "stream"),
    "stream is a number": ({"stream": 1}, "stream"),
    "messages is a text": ({"messages": "q"}, "messages"),
    "messages is an object": ({"messages": {"0": Q}}, "messages"),
    "messages is empty": ({"messages": []}, "messages"),
    "a message is null": ({"messages": [Q, None]}, "messages[1]"),
    "a message is a text": ({"messages": ["q"]}, "messages[0]"),
    "role is a list": (message(role=["user"]), "messages[1].role"),
    "role is missing": ({"messages": [{"content": "q"}]}, "messages[0].role"),
    "content is a number": (message(content=5), "messages[1].content"),
    "content is an object": (message(content={"type": "text", "text": "x"}), "messages[1].content"),
    "a part is a text": (message(content=["x"]), "messages[1].content[0]"),
    "a part is a picture": (message(content=[{"type": "image_url"}]), "messages[1].content[0].type"),
    "a part's text is a list": (message(content=[{"type": "text", "text": []}]), "messages[1].content[0].text"),
    "a part has no text": (message(content=[{"type": "text"}]), "messages[1].content[0].text"),
    "name is a list": (message(name=[]), "messages[1].name"),
    "tool_call_id is an object": (message(role="tool", tool_call_id={}), "messages[1].tool_call_id"),
    "tool_call_id is missing": (message(role="tool"), "messages[1].tool_call_id"),
    "tool_calls is an object": (message(role="assistant", tool_calls={}), "messages[1].tool_calls"),
    "a call is a text": ({"messages": [Q, {"role": "assistant", "tool_calls": ["f"]}]}, "messages[1].tool_calls[0]"),
    "a call's function is a text": (called(function="f"), "messages[1].tool_calls[0].function"),
    "a call has no name": (called(function={"arguments": "{}"}), "messages[1].tool_calls[0].function.name"),
    "a call's id is a number": (called(id=1, function={"name": "f"}), "messages[1].tool_calls[0].id"),
    "a call of another type": (called(type="custom", custom={}), "messages[1].tool_calls[0].type"),
    "function_call of old": (message(role="assistant", function_call={"name": "f"}), "messages[1].function_call"),
    "tools is an object": ({"tools": {}}, "tools"),
    "a tool is a text": ({"tools": ["f"]}, "tools[0]"),
    "a tool's function is a text": ({"tools": [{"type": "function", "function": "f"}]}, "tools[0].function"),
    "a tool's name is a list": (
        {"tools": [{"type": "function", "function": {"name": ["f"]}}]},
        "tools[0].function.name",
    ),
    "a tool's description is an object": (
        {"tools": [{"type": "function", "function": {"name": "f", "description": {}}}]},
        "tools[0].function.description",
    ),
    "parameters is a list": (
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]},
        "tools[0].function.parameters",
    ),
    "properties is a list": (function(properties=["a"]), "tools[0].function.parameters.properties"),
    "a schema's type is a number": (
        function(properties={"a": {"type": 5}}),
        "tools[0].function.parameters.properties.a.type",
    ),
    "required holds an object": (function(required=[{}]), "tools[0].function.parameters.required"),
    "enum is null": (function(properties={"a": {"enum": None}}), "tools[0].function.parameters.properties.a.enum"),
    "anyOf is a text": (function(properties={"a": {"anyOf": "x"}}), "tools[0].function.parameters.properties.a.anyOf"),
    "$defs is a text": (function(**{"$defs": "x"}), "tools[0].function.parameters['$defs']"),
    "$ref is a list": (
        function(properties={"a": {"$ref": []}}),
        "tools[0].function.parameters.properties.a['$ref']",
    ),
    "vLLM's top_k": ({"top_k": 20}, "top_k"),
    "vLLM's repetition_penalty": ({"repetition_penalty": 1.2}, "repetition_penalty"),
    "vLLM's ignore_eos": ({"ignore_eos": True}, "ignore_eos"),
    "a grammar of vLLM": ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    "a grammar of SGLang": ({"ebnf": "root ::= a"}, "ebnf"),
    "an answer to complete": ({"continue_final_message": True}, "continue_final_message"),
    "function_call of old, forced": ({"function_call": {"name": "f"}}, "function_call"),
    "tool_choice is a number": ({"tool_choice": 1}, "tool_choice"),
    "tool_choice is an object": ({"tool_choice": {"type": "function"}}, "tool_choice"),
    "max_tokens is a text": ({"max_tokens": "4"}, "max_tokens"),
    "max_tokens is true": ({"max_tokens": True}, "max_tokens"),
    "max_tokens is negative": ({"max_tokens": -1}, "max_tokens"),
    "max_tokens is a fraction": ({"max_tokens": 1.5}, "max_tokens"),
    "max_completion_tokens is a list": ({"max_completion_tokens": [4]}, "max_completion_tokens"),
    "temperature is a list": ({"temperature": [1]}, "temperature"),
    "temperature is true": ({"temperature": True}, "temperature"),
    "temperature is out of range": ({"temperature": 1e300}, "temperature"),
    "top_p is a text": ({"top_p": "0.5"}, "top_p"),
    "seed is a text": ({"seed": "1"}, "seed"),
    "seed is a fraction": ({"seed": 0.5}, "seed"),
    "seed of more than 64 bits": ({"seed": 2**64}, "seed"),
    "n is a list": ({"n": [1]}, "n"),
    "n is true": ({"n": True}, "n"),
    "stop is a number": ({"stop": 5}, "stop"),
    "stop of lists": ({"stop": [[]]}, "stop"),
    "logprobs is a number": ({"logprobs": 1}, "logprobs"),
    "top_logprobs is an object": ({"top_logprobs": {}}, "top_logprobs"),
    "response_format is a text": ({"response_format": "json"}, "response_format"),
    "model is a list": ({"model": ["policy"]}, "model"),
    "user is a list": ({"user": ["a"]}, "user"),
    "user is a number": ({"user": 7}, "user"),
    "logit_bias is a list": ({"logit_bias": [1]}, "logit_bias"),
    "store is a text": ({"store": "yes"}, "store"),
    "reasoning_effort is a number": ({"reasoning_effort": 1}, "reasoning_effort"),
    "half a surrogate in a text": (message(content=f"half {HALF}"), "messages[1].content"),
    "half a surrogate in a part": (
        message(content=[{"type": "text", "text": HALF}]),
        "messages[1].content[0].text",
    ),
    "half a surrogate in a user": ({"user": HALF}, "user"),
    "half a surrogate in a task": ({"metadata": {"task": HALF}}, "metadata.task"),
    "half a surrogate in a name of metadata": ({"metadata": {HALF: "a"}}, "metadata['\\ud83d']"),
    "half a surrogate in a tool": (
        function(properties={HALF: {}}),
        "tools[0].function.parameters.properties['\\ud83d']",
    ),
    "half a surrogate in what nobody reads": ({"extra": [[HALF]]}, "extra[0][0]"),
    "a name with a line break": ({"user": "a\r\nx-evil: 1"}, "user"),
    "a name with a null": ({"user": "a\x00b"}, "user"),
    "a name with an escape": ({"metadata": {"episode": "a\x1b[2Jb"}}, "metadata.episode"),
    "a name that runs backwards": ({"user": "a\u202eb"}, "user"),
    "a name that climbs": ({"user": "../../etc/passwd"}, "user"),
    "a name that is a dot": ({"user": "."}, "user"),
    "a name that climbs by backslash": ({"user": "a\\..\\b"}, "user"),
    "a name of a megabyte": ({"user": "a" * 1_000_000}, "user"),
    "a name in blanks": ({"user": " a "}, "user"),
    "a schema that explodes": (types_bomb(), "tools[0].function.parameters"),
    "a text beyond the context": (message(content="word " * 100_000), "messages"),
    "a text of blanks beyond the context": (message(content=" " * 1_000_000), "messages"),
}

# name -> (the body as bytes, the path that must be named)
RAW: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "body"),
    "a blank": (b" ", "body"),
    "null": (b"null", "body"),
    "a list": (b"[]", "body"),
    "a text": (b'"q"', "body"),
    "a number": (b"1", "body"),
    "cut off": (b'{"messages": [', "body"),
    "two objects": (b"{}{}", "body"),
    "cut off in a text": (b'{"user": "a', "body"),
    "Latin-1": ('{"user": "\u00e9"}'.encode("latin-1"), "body"),
    "UTF-16": ('{"user": "a"}'.encode("utf-16"), "body"),
    "overlong UTF-8": (b'{"user": "\xc0\xaf"}', "body"),
    "half a surrogate as bytes": (b'{"user": "\xed\xa0\xbd"}', "body"),
    "a null byte": (b'{"user": "a\x00"}', "body"),
    "a form": (b"user=a&messages=q", "body"),
    "single quotes": (b"{'messages': []}", "body"),
    "a comment": (b"{/* */}", "body"),
    "a comma too many": (b'{"messages": [],}', "body"),
    "lists 100,000 deep": (nested(100_000).encode(), "body"),
    "objects 100,000 deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "body"),
    "messages 70 deep": (f'{{"messages": {nested(70)}}}'.encode(), "messages" + "[0]" * 63),
    "NaN": (b'{"temperature": NaN}', "temperature"),
    "Infinity": (b'{"top_p": -Infinity}', "top_p"),
    "1e999": (b'{"temperature": 1e999}', "temperature"),
    "-1e999 where nobody reads": (b'{"extra": {"a": [0, -1e999]}}', "extra.a[1]"),
    "a number of 5,000 digits": (b'{"seed": ' + b"9" * 5000 + b"}", "seed"),
    "a number of 400 digits as tokens": (b'{"max_tokens": ' + b"9" * 400 + b"}", "max_tokens"),
    "a name twice": (b'{"user": "a", "user": "b"}', "user"),
    "a role twice": (b'{"messages": [{"role": "user", "content": "a", "role": "system"}]}', "messages[0].role"),
    "arguments that are no JSON": (arguments('"{a}"'), "messages[1].tool_calls[0].function.arguments"),
    "arguments that are a list": (arguments('"[1]"'), "messages[1].tool_calls[0].function.arguments"),
    "arguments that are a number": (arguments("5"), "messages[1].tool_calls[0].function.arguments"),
    "arguments with NaN": (arguments('"{\\"a\\": NaN}"'), "messages[1].tool_calls[0].function.arguments"),
    "arguments too deep": (
        arguments(json.dumps('{"a":' + nested(5000) + "}")),
        "messages[1].tool_calls[0].function.arguments",
    ),
}

# name -> (the reward's body, the path that must be named)
REWARDS: dict[str, tuple[bytes, str]] = {
    "NaN": (b'{"reward": NaN}', "reward"),
    "Infinity": (b'{"reward": Infinity}', "reward"),
    "-Infinity": (b'{"reward": -Infinity}', "reward"),
    "1e999": (b'{"reward": 1e999}', "reward"),
    "more than squares can hold": (b'{"reward": 1e200}', "reward"),
    "a number of 400 digits": (b'{"reward": ' + b"9" * 400 + b"}", "reward"),
    "a number of 5,000 digits": (b'{"reward": ' + b"9" * 5000 + b"}", "reward"),
    "a text": (b'{"reward": "1"}', "reward"),
    "the text NaN": (b'{"reward": "NaN"}', "reward"),
    "true": (b'{"reward": true}', "reward"),
    "null": (b'{"reward": null}', "reward"),
    "a list": (b'{"reward": [1]}', "reward"),
    "an object": (b'{"reward": {"value": 1}}', "reward"),
    "none": (b"{}", "reward"),
    "no object": (b"[1]", "reward"),
    "twice": (b'{"reward": 0, "reward": 1}', "reward"),
    "a part NaN": (b'{"reward": 1, "parts": {"a": NaN}}', "parts.a"),
    "a part 1e999": (b'{"reward": 1, "parts": {"a": 1, "b": 1e999}}', "parts.b"),
    "a part of text": (b'{"reward": 1, "parts": {"a": "1"}}', "parts.a"),
    "a part named as the sum": (b'{"reward": 1, "parts": {"total": 2}}', "parts.total"),
    "a part named by half a surrogate": (b'{"reward": 1, "parts": {"\\ud83d": 1}}', "parts['\\ud83d']"),
    "a misspelt field": (b'{"reward": 1, "part": {"a": 1}}', "part"),
    "a field that is no name": (b'{"reward": 1, "": 1}', "body['']"),
    "parts as a list": (b'{"reward": 1, "parts": [1]}', "parts"),
    "parts by the thousand": (json.dumps({"reward": 1, "parts": {f"p{i}": 1 for i in range(1000)}}).encode(), "parts"),
}


def cases() -> Iterator[Attack]:
    """All bodies, each against a separate gateway."""
    good = {"max_tokens": 4, "messages": [Q]}
    bodies = {name: (json.dumps({**good, **change}).encode(), field) for name, (change, field) in FIELDS.items()}
    for name, (body, field) in {**bodies, **RAW}.items():
        yield Attack(area=AREA, name=name, run=partial(_completion, body=body, field=field))
    for name, (body, field) in REWARDS.items():
        yield Attack(area=AREA, name=f"reward: {name}", run=partial(_reward, body=body, field=field))


def _completion(folder: Path, *, body: bytes, field: str) -> None:
    from gateway_client import CHAT, gateway

    async def attack() -> None:
        async with gateway(folder) as caller:
            await caller.refused(400, field, CHAT, body)
            assert not caller.gateway.recorder.open  # it left nothing behind
            await caller.alive()

    asyncio.run(attack())


def _reward(folder: Path, *, body: bytes, field: str) -> None:
    from gateway_client import BODY, CHAT, gateway

    async def attack() -> None:
        async with gateway(folder) as caller:
            await caller.send(CHAT, {**BODY, "user": "mine"})
            await caller.refused(400, field, REWARD, body)
            await caller.alive()
            assert (await caller.send(REWARD, {"reward": 0.5})).status_code == 200

    asyncio.run(attack())
