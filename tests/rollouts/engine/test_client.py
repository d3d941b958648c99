"""The client of inference servers: any bytes give a valid answer or a server fault."""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import httpx
import pytest
from attacks.lying import PROMPT, TOKENS, chat, engine, generate, quick, sglang, vllm
from hypothesis import given, settings
from hypothesis import strategies as st

from rollouts.engine.address import check_address, check_key, is_loopback, shown
from rollouts.engine.base import Finish
from rollouts.engine.client import (
    BadAnswer,
    Client,
    EngineGone,
    Patience,
    Request,
    ServerFault,
    ServerRefused,
    _retry_after,
    parse,
    shown_text,
)
from rollouts.engine.schemas import ChatAnswer
from rollouts.engine.servers.http import ROUNDING

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and index of ``tree``."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path for key, value in items for path in ((*at, key), *places(value, (*at, key)))]


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_any_change_of_an_answer_gives_a_fault_or_an_answer_that_was_asked_for(kind: str):
    honest = vllm() if kind == "vllm" else sglang()

    @settings(max_examples=60, deadline=None)
    @given(st.sampled_from(places(honest)), JSON)
    def change(path: tuple[Any, ...], value: Any) -> None:
        tree = json.loads(json.dumps(honest))
        node = tree
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = value
        try:
            done = asyncio.run(generate(engine(json.dumps(tree).encode(), kind)))
        except ServerFault as fault:
            assert "127.0.0.1" in str(fault) and str(fault).isprintable()
            return
        assert 1 <= len(done.tokens) == len(done.logprobs) <= 3 and all(0 <= token < 100 for token in done.tokens)
        assert all(-1000 < value <= 0 for value in done.logprobs) and done.policy_version == 0
        assert (done.finish is Finish.STOP) == (done.tokens[-1] == 2) and 2 not in done.tokens[:-1]
        assert done.routes.shape == (len(PROMPT) + len(done.tokens) - 1, 2, 2)
        assert ((done.routes >= 0) & (done.routes < 4)).all()

    change()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | JSON.map(lambda tree: json.dumps(tree).encode()))
def test_any_body_is_an_object_or_a_bad_answer_that_can_be_printed(body: bytes):
    try:
        tree = parse(body, "http://x/y", lambda data: shown_text(data.decode(errors="replace")))
    except BadAnswer as fault:
        assert str(fault).startswith("http://x/y did not answer with a JSON object") and str(fault).isprintable()
    else:
        assert isinstance(tree, dict)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(places(chat())), JSON)
def test_any_change_of_a_chat_answer_is_wrong_or_has_text_and_calls(path: tuple[Any, ...], value: Any):
    tree = chat()
    node: Any = tree
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    try:
        answer = ChatAnswer.model_validate(tree)
    except ValueError:
        return
    message = answer.choices[0].message
    assert isinstance(message.text, str) and all(call.function.name is not None for call in message.tool_calls or [])
    for count in (answer.usage.prompt_tokens, answer.usage.completion_tokens) if answer.usage else ():
        assert count is None or (type(count) is int and count >= 0)


def test_rounding_above_zero_counts_as_zero_and_keys_that_are_not_read_may_be_there():
    tree = vllm()
    for item, value in zip(tree["choices"][0]["logprobs"]["content"], (ROUNDING, -0.0, 0), strict=True):
        item |= {"logprob": value, "rank": 1, "bytes": None}
    done = asyncio.run(generate(engine(tree | {"new": {"deep": [1]}})))
    assert done.tokens == TOKENS and done.logprobs == [0.0, 0.0, 0.0]


def test_a_stop_by_the_servers_own_end_of_text_is_no_stop_of_ours():
    tree = vllm()
    tree["choices"][0]["token_ids"][2] = tree["choices"][0]["logprobs"]["content"][2]["token_id"] = 3
    with pytest.raises(BadAnswer, match=r"/inference/v1/generate: it stopped at token 3, and the stop tokens \[2\]"):
        asyncio.run(generate(engine(tree)))


@settings(max_examples=200)
@given(st.text(max_size=40))
def test_any_retry_after_is_a_time_to_wait_or_none(value: str):
    asked = _retry_after(value)
    assert asked is None or asked >= 0


def test_retry_after_is_read_in_both_of_its_forms():
    ahead = datetime.now(UTC) + timedelta(seconds=50)
    assert 45 < (_retry_after(format_datetime(ahead, usegmt=True)) or 0) < 51
    assert (_retry_after("7"), _retry_after("1.5"), _retry_after(" 3 ")) == (7.0, 1.5, 3.0)
    for none in ("", "soon", "-1", "nan", "inf", "1e3", "Wed, 99 Foo 2026 10:00:00 GMT"):
        assert _retry_after(none) is None


async def test_pauses_grow_with_jitter_and_end_at_their_longest():
    times: list[float] = []

    def busy(request: httpx.Request) -> httpx.Response:
        times.append(time.monotonic())
        return httpx.Response(503)

    client = Client("http://127.0.0.1:1", transport=httpx.MockTransport(busy))
    patience = Patience(unreached=lambda *_: True, tries=6, pause_s=0.02, longest_pause_s=0.05)
    with pytest.raises(ServerRefused, match="answered 503"):
        await client.ask(Request(path="/x"), 30, most=100, patience=patience)
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert len(pauses) == 5 and client.sent_again == 5 and len({round(pause, 4) for pause in pauses}) > 1


async def test_a_server_that_is_waited_for_is_named_once_until_it_answers(monkeypatch, caplog):
    monkeypatch.setattr("rollouts.engine.client._TOLD_S", 0.02)
    up = False

    def maybe(request: httpx.Request) -> httpx.Response:
        if not up:
            raise httpx.ConnectError("refused")
        return httpx.Response(200, content=b"{}")

    client = Client("http://127.0.0.1:1", transport=httpx.MockTransport(maybe))
    patience = Patience(unreached=lambda tries, _: tries > 40, pause_s=0.01, longest_pause_s=0.01)

    async def ask() -> None:
        with suppress(ServerFault):
            await client.ask(Request(path="/x"), 30, most=100, patience=patience)

    await client.status("/health", 5)
    assert not caplog.messages  # it may be starting
    for outage in (1, 2):
        up = False
        await asyncio.gather(ask(), ask(), client.status("/health", 5))
        assert len(caplog.messages) == outage
        assert "http://127.0.0.1:1 cannot be reached (" in caplog.messages[-1]
        assert "refused" in caplog.messages[-1] and "waited for" in caplog.messages[-1]
        up = True
        await ask()


def test_faults_travel_between_processes_whole():
    for fault in (BadAnswer("a"), EngineGone("b"), ServerRefused("c", 429, "d", 1.5)):
        copy = pickle.loads(pickle.dumps(fault))
        assert type(copy) is type(fault) and str(copy) == str(fault) and vars(copy) == vars(fault)


def test_a_port_that_nobody_listens_at_is_a_server_that_is_gone():
    with quick(), pytest.raises(EngineGone, match=r"http://127.0.0.1:1 cannot be reached: ConnectError"):
        asyncio.run(generate(engine("http://127.0.0.1:1")))


LOOPBACK = (
    "http://127.0.0.1",
    "http://127.9.9.9:80/v1",
    "http://localhost:8000",
    "http://LOCALHOST",
    "http://[::1]:8000",
)


@pytest.mark.parametrize("url", LOOPBACK)
def test_a_key_may_go_to_this_machine_over_http(url: str):
    check_address(url, "")
    check_key(url, "secret", "KEY")
    assert is_loopback(url)


def test_a_key_may_go_anywhere_over_tls_and_must_fit_a_header():
    check_key("https://gpu-box.example/v1", "secret", "KEY")
    check_key("http://gpu-box.example/v1", None, "KEY")
    for key in ("two words", "line\nbreak", "sch\u00fcssel", "\x00"):
        with pytest.raises(ValueError, match="KEY has spaces or characters"):
            check_key("https://gpu-box.example", key, "KEY")


@pytest.mark.parametrize("text", ["what? no @ all", "a@b.c #1", "C:/x?y", "1 < 2", "[http://a:1, http://b/c]"])
def test_ordinary_text_is_shown_as_it_is(text: str):
    assert shown(text) == text


@given(
    st.text(alphabet=st.characters(blacklist_characters="/?#\"'<> \t\r\n", blacklist_categories=("Z", "C")), min_size=1)
)
def test_no_credentials_are_ever_shown(secret: str):
    secret = f"S3CRET{secret}"
    assert "S3CRET" not in shown(f"see http://{secret}@host/x and https://u:{secret}@h")
    assert "S3CRET" not in shown(f"http://host/v1?key={secret}")
