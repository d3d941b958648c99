"""Any request body, headers, method or path: never a 500, and each 400 names a field of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from gateway_client import BODY, CHAT, Caller, asgi_post, gateway
from hypothesis import given, settings
from hypothesis import strategies as st

FIELDS = (
    *("messages", "model", "tools", "tool_choice", "metadata", "user", "stream", "stream_options", "stop", "n", "seed"),
    *("max_tokens", "max_completion_tokens", "temperature", "top_p", "logprobs", "top_logprobs", "response_format"),
    *("logit_bias", "functions", "function_call", "parallel_tool_calls", "modalities", "audio", "store", "prediction"),
)
OF_HEADERS = (
    *("host", "origin", "content-type", "content-length", "content-encoding", "sec-fetch-site"),
    *("x-parl-episode", "x-parl-task"),
)
ROOMS = ("v1", "parl", "episodes", "reward", "chat", "completions", "..", "", "%2f", "%00")
any_text = st.text(max_size=20) | st.text(st.characters(categories=("Cs", "Cc", "Cf", "Lu")), max_size=4)
any_number = st.integers() | st.floats() | st.just(10**400) | st.just(2**70)
leaves = st.none() | st.booleans() | any_number | any_text
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3), max_leaves=8
)
names = st.sampled_from(("role", "content", "name", "tool_calls", "tool_call_id", "type", "text", "function", "id"))
words = st.sampled_from(
    ("user", "assistant", "tool", "system", "text", "function", "object", "array", "f", "{}", "[1]")
)
more = st.sampled_from(
    ("parameters", "properties", "arguments", "description", "anyOf", "enum", "$ref", "$defs", "items")
)
likely = st.recursive(
    words | leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | more, inner, max_size=5)
)  # trees of the right names, with the wrong things under them
messages = st.lists(st.fixed_dictionaries({"role": words, "content": words | likely}, optional={"tool_calls": likely}))
tools = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.just("function"),
            "function": st.fixed_dictionaries({"name": words | likely}, optional={"parameters": likely}),
        }
    )
)


@pytest.fixture
def run() -> Iterator[Callable[[Callable[[Caller], Coroutine[Any, Any, None]]], None]]:
    """Runs coroutines over one gateway, which must still serve other requests at the end."""
    with asyncio.Runner() as runner:
        served = gateway(None, conversations=16)
        caller = runner.run(served.__aenter__())
        yield lambda act: runner.run(act(caller))
        runner.run(caller.alive())
        runner.run(served.__aexit__(None, None, None))


def named(answer: Any, tree: Any, *known: str) -> None:
    """Fails if a 400 names a field that the request does not have."""
    if answer.status_code == 400:
        field = answer.json()["error"]["param"]
        assert field is not None
        first = field.split(".")[0].split("[")[0]
        assert first in ("body", "messages", *known) or first in tree, answer.text


async def completions(caller: Caller, change: Any, good: bool, parts: Any) -> None:
    tree = {**(BODY if good else {}), **change, **parts}
    named(await caller.send(CHAT, json.dumps(tree).encode()), tree)


async def rewards(caller: Caller, tree: Any) -> None:
    await caller.send(CHAT, {**BODY, "user": "mine"})
    answer = await caller.send("/v1/parl/episodes/mine/reward", json.dumps(tree).encode())
    assert answer.status_code in (200, 400)
    named(answer, tree, "reward", "parts")


async def raw_bodies(caller: Caller, body: bytes) -> None:
    for path in (CHAT, "/v1/parl/episodes/mine/reward"):
        answer = await caller.send(path, body)
        assert answer.status_code == 400, answer.text


async def headers(caller: Caller, given: list[tuple[str, bytes]], whole: bool) -> None:
    base = [("host", "localhost"), ("content-type", "application/json")] if whole else []
    status, answer = await asgi_post(caller.gateway, CHAT, json.dumps(BODY).encode(), [*base, *given])
    assert status < 500, answer
    if status == 400:
        assert answer["error"]["param"] in OF_HEADERS, answer


async def paths(caller: Caller, method: str, path: str) -> None:
    answer = await caller.send(f"http://localhost/{quote(path, safe='/%')}", None, method=method)
    assert answer.status_code in (200, 400, 404, 405, 415), answer.text


# strategy, and the request made from it
FUZZ: dict[str, tuple[Any, dict[str, Any]]] = {
    "completions": (
        completions,
        {
            "change": st.dictionaries(st.sampled_from(FIELDS), trees | likely | words, max_size=4),
            "good": st.booleans(),
            "parts": st.fixed_dictionaries({}, optional={"messages": messages, "tools": tools}),
        },
    ),
    "rewards": (rewards, {"tree": trees | st.fixed_dictionaries({"reward": leaves}, optional={"parts": trees})}),
    "bytes": (
        raw_bodies,
        {"body": st.binary(max_size=200) | any_text.map(lambda t: t.encode("utf-8", "surrogatepass"))},
    ),
    "headers": (
        headers,
        {
            "given": st.lists(
                st.tuples(
                    st.sampled_from((*OF_HEADERS, "authorization", "transfer-encoding", "sec-fetch-site", "range")),
                    st.binary(max_size=30) | st.sampled_from((b"localhost", b"application/json", b"chunked", b"3")),
                ),
                max_size=6,
            ),
            "whole": st.booleans(),
        },
    ),
    "paths": (
        paths,
        {
            "method": st.sampled_from(("GET", "POST", "PUT", "HEAD", "OPTIONS", "DELETE", "PURGE")),
            "path": st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
            | st.lists(st.sampled_from(ROOMS), max_size=6).map("/".join),
        },
    ),
}


@pytest.mark.parametrize("kind", FUZZ)
@pytest.mark.parametrize("examples", [30, pytest.param(600, marks=pytest.mark.slow)])
def test_nothing_ends_in_a_500_and_each_400_names_a_field_of_the_request(run, kind, examples):
    act, strategies = FUZZ[kind]

    @settings(max_examples=examples, deadline=None)
    @given(drawn=st.fixed_dictionaries(strategies))
    def check(drawn: dict[str, Any]) -> None:
        run(lambda caller: act(caller, **drawn))

    check()
