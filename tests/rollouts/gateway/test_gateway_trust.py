"""The gateway under untrusted requests and faults: what it accepts, its bounds, and isolation of failures."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from gateway_client import BODY, CHAT, USER, Caller, Parrot, asgi_post, gateway, small_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import random_weights, tiny_model

from model.chat.kimi import Call, assistant_pieces
from rollouts.engine.base import Completion, EngineFull, Finish, Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.engine.embedded.pages import CacheFull
from rollouts.episode import Episode, EpisodeStatus
from rollouts.gateway.app import KIND, Gateway
from rollouts.store.store import EpisodeStore

TOOL = {"type": "function", "function": {"name": "f", "description": None, "parameters": None, "strict": True}}
DEEP = {"type": "object", "properties": {"a": {"type": ["object", "null"], "properties": {"b": {"type": "array"}}}}}


def stored(caller: Caller, after: int = 0) -> list[Episode]:
    """All episodes of the store, or those of the shards after ``after``."""
    store = caller.gateway.store
    assert store is not None
    return [episode for step in store.steps(KIND) if step > after for episode in (store.read(step, KIND) or ([], 0))[0]]


def rewarded(name: str) -> str:
    return f"/v1/parl/episodes/{quote(name, safe='')}/reward"


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": 1e-40},
        {"temperature": 2, "top_p": 0},
        {"max_tokens": None, "max_completion_tokens": 7},
        {"seed": -1},
        {"n": 1, "stop": None, "logit_bias": {}, "presence_penalty": 0.0, "frequency_penalty": 0, "top_logprobs": 0},
        {"stop": []},
        {"response_format": {"type": "text"}, "modalities": ["text"], "parallel_tool_calls": True},
        {"store": False, "service_tier": "auto", "reasoning_effort": "low", "metadata": None, "user": None},
        {"metadata": {"team": "x", "empty": ""}, "safety_identifier": "s"},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": DEEP}}], "tool_choice": "none"},
        {"stream": False, "stream_options": None, "logprobs": True},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "a"}]}, USER]},
        {"messages": [{"role": "user", "content": "\x00 \ufeff \U0001f600 \ufffd"}]},
        {"messages": [USER, {"role": "assistant", "content": None, "refusal": None, "tool_calls": None}, USER]},
        {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f"}}]}, USER]},
        {"user": "ユーザー/7", "unknown_field": {"a": [1, 2.5, None]}},
        {"model": None, "function_call": "none", "functions": []},
        {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "ignore_eos": False, "best_of": 1, "stop_token_ids": []},
    ],
)
async def test_what_openai_accepts_is_served(tmp_path, change):
    async with gateway(tmp_path) as caller:
        answer = await caller.send(CHAT, {**BODY, **change})
        assert answer.status_code == 200, answer.text


async def test_a_byte_order_mark_and_a_charset_are_read(tmp_path):
    async with gateway(tmp_path) as caller:
        for kind in ("application/json; charset=utf-8", 'Application/JSON; charset="UTF-8"', "application/json "):
            body = b"\xef\xbb\xbf" + json.dumps(BODY).encode()
            assert (await caller.send(CHAT, body, headers={"content-type": kind})).status_code == 200


async def test_a_fields_mistake_is_named_before_a_form_as_content_type(tmp_path):
    """``curl -d`` without a header sends a form: both are wrong, and the field's mistake is reported."""
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with gateway(tmp_path) as caller:
        await caller.refused(400, "reward", "/v1/parl/episodes/a/reward", b'{"reward": NaN}', headers=form)
        await caller.refused(400, "metadata", CHAT, b'{"metadata": "a", "messages": [{"role": "user"}]}', headers=form)
        await caller.refused(415, "content-type", CHAT, json.dumps(BODY).encode(), headers=form)
        await caller.refused(415, "content-type", CHAT, b"messages=q", headers=form)


def test_any_name_is_stored_whole_or_refused_and_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)  # hundreds of shards

    @settings(max_examples=40, deadline=None)
    @given(names=st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=3, unique=True), by=st.integers(0, 2))
    def check(names: list[str], by: int) -> None:
        runner.run(stored_or_refused(caller, names, by))

    with asyncio.Runner() as runner:
        served = gateway(tmp_path)
        caller = runner.run(served.__aenter__())
        check()
        runner.run(served.__aexit__(None, None, None))


async def stored_or_refused(caller: Caller, names: list[str], by: int) -> None:
    before, taken = caller.gateway._shard, []
    for name in names:
        more = ({"user": name}, {"metadata": {"episode": name}}, {"user": "x", "metadata": {"task": name}})[by]
        answer = await caller.send(CHAT, json.dumps({**BODY, **more}).encode())
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert answer.json()["error"]["param"] in ("user", "metadata.episode", "metadata.task")
        else:
            taken.append(answer.json()["parl"]["episode"])
            assert answer.headers["x-parl-episode"] == taken[-1]
    listed = (await caller.send("/v1/parl/episodes", method="GET")).json()["episodes"]
    assert [row["episode"] for row in listed] == list(dict.fromkeys(taken))
    for name in dict.fromkeys(taken):
        assert (await caller.send(rewarded(name), {"reward": 1})).status_code == 200, name
    found = [episode.metrics["gateway/episode"] for episode in stored(caller, before)]
    assert found == list(dict.fromkeys(taken))


async def test_a_name_comes_in_a_header_as_utf8(tmp_path):
    async with gateway(tmp_path) as caller:
        headers = [("host", "localhost"), ("content-type", "application/json"), ("x-parl-episode", "día/1".encode())]
        status, answer = await asgi_post(caller.gateway, CHAT, json.dumps(BODY).encode(), headers)
        assert status == 200 and answer["parl"]["episode"] == "día/1" and "día/1" in caller.gateway.recorder.open


class Refusing(EpisodeStore):
    """A store that refuses some episodes."""

    refused: str | None = "bad"

    def write(self, step: int, episodes: Any, **more: Any) -> Path:
        if self.refused in (None, episodes[0].metrics["gateway/episode"]):
            raise OSError(28, "No space left on device")
        return super().write(step, episodes, **more)


async def test_an_episode_that_cannot_be_stored_stays_and_costs_no_other(tmp_path):
    async with gateway(tmp_path) as caller:
        store = caller.gateway.store = Refusing(tmp_path)
        for name in ("good", "bad"):
            await caller.send(CHAT, {**BODY, "user": name})
        error = await caller.refused(503, None, rewarded("bad"), {"reward": 1})
        assert "No space left" in error["message"] and "'bad'" in error["message"]
        await caller.alive()
        assert (await caller.send(rewarded("good"), {"reward": 1})).status_code == 200
        more = [USER, {"role": "assistant", "content": "It is 37."}, {"role": "user", "content": "and"}]
        assert (await caller.send(CHAT, {**BODY, "user": "bad", "messages": more})).status_code == 200  # it goes on
        store.refused = None
        await caller.refused(503, None, rewarded("bad"), {"reward": 1})
        store.refused = "nobody"
        assert (await caller.send(rewarded("bad"), {"reward": 0.5})).status_code == 200
        assert [e.rewards["total"] for e in stored(caller) if e.metrics["gateway/episode"] == "bad"] == [0.5]


async def test_at_the_end_all_that_can_be_stored_is_and_what_cannot_is_said(tmp_path, caplog):
    async with gateway(tmp_path) as caller:
        caller.gateway.store = Refusing(tmp_path)
        for name in ("one", "bad", "two"):
            await caller.send(CHAT, {**BODY, "user": name})
    assert [episode.metrics["gateway/episode"] for episode in stored(caller)] == ["one", "two"]
    assert "'bad'" in caplog.text and "No space left" in caplog.text


async def test_two_rewards_at_once_store_an_episode_once(tmp_path):
    async with gateway(tmp_path) as caller:
        await caller.send(CHAT, {**BODY, "user": "a"})
        answers = await asyncio.gather(*(caller.send(rewarded("a"), {"reward": i}) for i in range(8)))
        assert sorted(answer.status_code for answer in answers)[0] == 200
        assert {answer.status_code for answer in answers[1:]} <= {200, 404, 409}
        assert len(stored(caller)) == 1


async def test_what_a_policy_writes_can_always_be_sent_and_stored_and_gone_on_from(tmp_path):
    class Wild(Parrot):
        async def generate(self, prompt: list[int], sampling: Sampling, **more: Any) -> Completion:
            call = Call(id="functions.f:0", name="f", arguments={"\ud83d": ["\udc00 é", "\x00"]})
            tokens = small_tokenizer().encode_segments(assistant_pieces("", [call], thinking=False))
            logprobs = [-30.0] * len(tokens)
            return Completion(tokens=tokens, logprobs=logprobs, finish=Finish.STOP, policy_version=0)

    async with gateway(tmp_path, Wild()) as caller:
        for stream in (False, True):
            body = {**BODY, "user": f"u{stream}", "tools": [TOOL], "logprobs": True, "stream": stream}
            assert (await caller.send(CHAT, body)).status_code == 200
        answer = await caller.send(CHAT, {**body, "user": "v", "stream": False})
        message = answer.json()["choices"][0]["message"]
        again = await caller.send(CHAT, {**body, "user": "v", "stream": False, "messages": [USER, message, USER]})
        assert again.status_code == 200, again.text
        assert len(caller.gateway.recorder.open["v"].conversations) == 1  # it was known again


@pytest.mark.parametrize(
    "arguments", [{"a": int("1" * 301)}, {"a": -int("9" * 4000)}, {"a": json.loads("[" * 70 + "]" * 70)}]
)
async def test_arguments_that_no_request_could_carry_are_a_malformed_turn(tmp_path, arguments):
    class Wild(Parrot):
        async def generate(self, prompt: list[int], sampling: Sampling, **more: Any) -> Completion:
            call = Call(id="functions.f:0", name="f", arguments=arguments)
            tokens = small_tokenizer().encode_segments(assistant_pieces("", [call], thinking=False))
            return Completion(tokens=tokens, logprobs=[-1.0] * len(tokens), finish=Finish.STOP, policy_version=0)

    async with gateway(tmp_path, Wild()) as caller:
        body = {**BODY, "user": "v", "tools": [TOOL]}
        answer = await caller.send(CHAT, body)
        assert answer.status_code == 200, answer.text
        assert "no request can carry" in answer.json()["parl"]["malformed"]
        message = answer.json()["choices"][0]["message"]
        assert (await caller.send(CHAT, {**body, "messages": [USER, message, USER]})).status_code == 200
        assert len(caller.gateway.recorder.open["v"].conversations) == 1


async def test_tokens_beyond_the_vocabulary_are_a_malformed_turn(tmp_path):
    class Beyond(Parrot):
        async def generate(self, prompt: list[int], sampling: Sampling, **more: Any) -> Completion:
            return Completion(tokens=[5, 10**6], logprobs=[-1.0, -2.0], finish=Finish.LENGTH, policy_version=0)

    async with gateway(tmp_path, Beyond()) as caller:
        answer = await caller.send(CHAT, {**BODY, "logprobs": True})
        assert answer.status_code == 200 and "malformed" in answer.json()["parl"]


@pytest.mark.parametrize("logprob", [float("nan"), float("-inf")])
async def test_log_probs_that_are_none_are_the_engines_failure(tmp_path, logprob):
    class Wrong(Parrot):
        async def generate(self, prompt: list[int], sampling: Sampling, **more: Any) -> Completion:
            return Completion(tokens=[5], logprobs=[logprob], finish=Finish.LENGTH, policy_version=0)

    async with gateway(tmp_path, Wrong()) as caller:
        answer = await caller.send(CHAT, BODY)
        assert answer.status_code == 502 and "not finite" in answer.json()["error"]["message"]
        assert not caller.gateway.recorder.open


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EngineFull("no room"), 503),
        (CacheFull("all 4 cache pages are in use"), 503),
        (TimeoutError(), 504),
        (RuntimeError("the engine has no weights yet"), 502),
        (ValueError("bad"), 502),
        (KeyError("x"), 502),
    ],
)
async def test_an_engine_that_fails_is_told_in_openais_form_and_leaves_nothing_behind(tmp_path, error, status):
    engine = Parrot(raises=error)
    async with gateway(tmp_path, engine) as caller:
        answer = await caller.send(CHAT, {**BODY, "user": "a"})
        assert answer.status_code == status and answer.json()["error"]["type"] == "server_error"
        assert ("retry-after" in answer.headers) == (status == 503)
        assert not caller.gateway.recorder.open and len(engine.released) == 1
        engine.raises = None
        await caller.alive()


class Waiting(Parrot):
    """An engine that answers when released."""

    def __init__(self) -> None:
        super().__init__()
        self.may = asyncio.Event()
        self.ended = 0

    async def generate(self, prompt: list[int], sampling: Sampling, **more: Any) -> Completion:
        try:
            await self.may.wait()
        finally:
            self.ended += 1
        return await super().generate(prompt, sampling, **more)


async def test_more_completions_than_may_run_are_refused_at_once(tmp_path):
    engine = Waiting()
    async with gateway(tmp_path, engine, running=2) as caller:
        under_way = [asyncio.create_task(caller.send(CHAT, BODY)) for _ in range(2)]
        await asyncio.sleep(0.05)
        answer = await caller.send(CHAT, BODY)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert answer.json()["error"]["type"] == "rate_limit_error"
        engine.may.set()
        assert [one.status_code for one in await asyncio.gather(*under_way)] == [200, 200]
        await caller.alive()


async def test_an_episode_that_waits_for_an_answer_is_not_given_up(tmp_path):
    engine = Waiting()
    async with gateway(tmp_path, engine, conversations=1, idle_s=0.0) as caller:
        first = asyncio.create_task(caller.send(CHAT, {**BODY, "user": "a"}))
        await asyncio.sleep(0.05)
        assert (await caller.send(CHAT, {**BODY, "user": "b"})).status_code == 503
        await caller.refused(409, None, rewarded("a"), {"reward": 1})
        engine.may.set()
        assert (await first).status_code == 200


@pytest.mark.parametrize("bounds", [{"conversations": 4}, {"tokens": 200}])
async def test_what_is_kept_in_memory_is_bounded_and_what_goes_is_stored(tmp_path, bounds):
    async with gateway(tmp_path, **bounds) as caller:
        for i in range(20):
            await caller.send(CHAT, {**BODY, "messages": [{"role": "user", "content": f"q{i}"}], "user": f"u{i % 10}"})
        conversations, tokens = caller.gateway.recorder.held()
        assert conversations <= bounds.get("conversations", 99) and tokens <= 300
        given_up = stored(caller)
        assert given_up and all(episode.status is EpisodeStatus.FAILED for episode in given_up)
        assert len(given_up) + len(caller.gateway.recorder.open) >= 10


async def test_one_name_without_end_is_bounded_too(tmp_path):
    async with gateway(tmp_path, conversations=4) as caller:
        for i in range(20):
            body = {**BODY, "messages": [{"role": "user", "content": f"q{i}"}], "user": "bob"}
            assert (await caller.send(CHAT, body)).status_code == 200
        assert caller.gateway.recorder.held()[0] <= 4


async def test_bodies_under_way_together_are_bounded(tmp_path):
    async with gateway(tmp_path, body_bytes=1000) as caller:
        caller.gateway._bodies._held = 16_000
        assert (await caller.send(CHAT, BODY)).status_code == 503
        caller.gateway._bodies._held = 0
        await caller.alive()


async def embedded(pages: int) -> EmbeddedEngine:
    engine = EmbeddedEngine(tiny_model(), pages=pages)
    await engine.update(Update(version=0, weights=random_weights(tiny_model())))
    return engine


async def test_idle_conversations_leave_their_pages_to_others_and_can_go_on(tmp_path):
    engine = await embedded(12)  # three conversations' worth
    async with gateway(tmp_path, engine, longest=1024) as caller:
        histories: list[list[Any]] = [[{"role": "user", "content": f"{i} " * 20}] for i in range(6)]
        for _ in range(2):
            for i, history in enumerate(histories):
                answer = await caller.send(CHAT, {**BODY, "messages": history, "user": f"u{i}"})
                assert answer.status_code == 200, answer.text
                history += [answer.json()["choices"][0]["message"], {"role": "user", "content": "more"}]
        for i in range(6):
            assert (await caller.send(rewarded(f"u{i}"), {"reward": 1})).status_code == 200
        for episode in stored(caller):
            [trace] = episode.traces
            assert len(trace.turns) == 2 and (trace.routes[:-1] >= 0).all()


async def test_more_than_fits_is_answered_by_some_and_refused_to_others_and_all_pages_come_back(tmp_path):
    engine = await embedded(12)
    async with gateway(tmp_path, engine, longest=1024) as caller:
        bodies = [{**BODY, "max_tokens": 60, "messages": [{"role": "user", "content": f"{i} " * 20}]} for i in range(6)]
        answers = await asyncio.gather(*(caller.send(CHAT, body) for body in bodies))
        assert {answer.status_code for answer in answers} == {200, 503}
        whole = {**BODY, "messages": [{"role": "user", "content": "word " * 100}], "user": "large"}
        assert (await caller.send(CHAT, whole)).status_code == 503  # alone it is too long
        await caller.alive()


async def test_a_caller_that_hangs_up_ends_the_generation(tmp_path):
    engine = await embedded(256)
    async with gateway(tmp_path, engine, longest=1024) as caller:
        task = asyncio.create_task(hang_up(caller.gateway, {**BODY, "max_tokens": 900}))
        await asyncio.wait_for(task, 20)
        assert not engine._running and engine.statistics()["streams"] == 0
        assert not caller.gateway.recorder.open
        assert engine.generated < 900


async def hang_up(served: Gateway, body: dict[str, Any]) -> None:
    """A request whose client disconnects during generation."""
    messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await asyncio.sleep(0.05)
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        assert message["type"] != "http.response.body" or not message.get("body"), "it answered nobody"

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "raw_path": CHAT.encode(), "query_string": b""}
    await served.app()({**scope, "headers": headers, "root_path": "", "scheme": "http"}, receive, send)
