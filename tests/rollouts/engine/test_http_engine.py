"""The client of inference servers: requests, answers, retries and errors."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from replay import Replay

from rollouts.engine.base import Finish, Sampling
from rollouts.engine.servers import http
from rollouts.engine.servers.dialects import BadAnswer, Sglang, Vllm, noise
from rollouts.engine.servers.http import EngineGone, HttpEngine

SAMPLING = Sampling(seed=5, temperature=1.0, max_new_tokens=6)
PROMPT = list(range(40, 60))
Handler = Callable[[httpx.Request], httpx.Response]


def engine(answer: Handler | httpx.AsyncBaseTransport, dialect: Any = None, **options: Any) -> HttpEngine:
    transport = answer if isinstance(answer, httpx.AsyncBaseTransport) else httpx.MockTransport(answer)
    url = options.pop("url", "http://server:1/")
    made = HttpEngine(url, dialect or Vllm(), **{"pool": "policy", "longest": 100, "transport": transport, **options})
    made.policy_version = 0
    return made


def vllm_answer(tokens: list[int], version: str = "0", finish: str = "length", **choice: Any) -> dict[str, Any]:
    content = [{"token_id": token, "logprob": -1.0} for token in tokens]
    spans = [{"version": version, "start": 0, "end": len(tokens)}]
    base = {"finish_reason": finish, "logprobs": {"content": content}, "weight_versions": spans}
    return {"choices": [{**base, "routed_experts": None, **choice}]}


def answering(*tokens: int, **options: Any) -> Handler:
    return lambda request: httpx.Response(200, json=vllm_answer(list(tokens), **options))


def experts(array: np.ndarray) -> str:
    file = io.BytesIO()
    np.save(file, array)
    return base64.b64encode(file.getvalue()).decode()


async def test_sglang_as_its_source_writes_it_gives_tokens_log_probs_routes_and_version():
    replay = Replay("sglang")
    replay.exchanges = replay.exchanges[5:]
    shape = {"layers": 2, "experts": 2, "dense": 1}
    served = engine(replay, Sglang(), **shape)
    served.policy_version = 3
    sampling = Sampling(seed=1, temperature=0.8, max_new_tokens=8, stop=(2,))
    first = await served.generate([11, 12, 13, 14], sampling, session="a", deadline_s=5)
    assert (first.tokens, first.logprobs, first.finish) == ([31, 2], [-0.25, -0.5], Finish.STOP)
    assert first.policy_version == 3 and first.routes_start == 0
    assert first.routes is not None and first.routes.shape == (5, 2, 2) and first.routes.dtype == np.int16
    assert first.routes[:, 0].tolist() == [[p % 4, (p + 1) % 4] for p in range(5)]  # the dense layer is left out
    limited = Sampling(seed=1, temperature=0.8, max_new_tokens=2, stop=(2,))
    second = await served.generate([11, 12, 13, 14, 31, 2, 15, 16], limited, session="a", deadline_s=5)
    assert second.routes_start == 5 and second.routes is not None and len(second.routes) == 4
    assert second.routes[:, 1].tolist() == [[p % 4, (p + 2) % 4] for p in range(5, 9)]
    assert second.finish is Finish.LENGTH and not replay.exchanges


async def test_routes_of_vllm_tile_the_stream_of_a_session():
    asked: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        tree = json.loads(request.content)
        start, end = tree["sampling_params"]["routed_experts_prompt_start"], len(tree["token_ids"]) + 1
        asked.append(start)
        array = np.arange(start, end)[:, None, None].repeat(3, 1).repeat(2, 2).astype(np.uint8)
        return httpx.Response(200, json=vllm_answer([7, 8], routed_experts=experts(array)))

    served = engine(answer, layers=3, experts=2)
    first = await served.generate([1, 2, 3], SAMPLING, session="a", deadline_s=5)
    second = await served.generate([1, 2, 3, 7, 8, 9], SAMPLING, session="a", deadline_s=5)
    await served.release("a")
    again = await served.generate([1, 2, 3], SAMPLING, session="a", deadline_s=5)
    assert asked == [0, 4, 0] and again.routes_start == 0
    assert first.routes is not None and second.routes is not None
    assert np.concatenate([first.routes, second.routes])[:, 0, 0].tolist() == list(range(7))


async def test_missing_routes_are_an_error_unless_the_learner_may_choose_its_own():
    with pytest.raises(BadAnswer, match=r"--enable-return-routed-experts.*without_routes=live"):
        await engine(answering(7), layers=2, experts=2).generate([1, 2], SAMPLING, session="a", deadline_s=5)
    lenient = engine(answering(7), layers=2, experts=2, live_routes=True)
    found = await lenient.generate([1, 2], SAMPLING, session="a", deadline_s=5)
    assert found.routes is not None and found.routes.shape == (2, 2, 2) and (found.routes == -1).all()


async def test_routes_of_another_size_are_an_error():
    wrong = experts(np.zeros((2, 5, 2), np.uint8))
    served = engine(answering(7, routed_experts=wrong), layers=2, experts=2, dense=1)
    with pytest.raises(BadAnswer, match="20 experts for 2 positions of 2 layers"):
        await served.generate([1, 2], SAMPLING, session="a", deadline_s=5)


async def test_the_request_carries_salt_key_and_a_seed_of_its_place_in_the_stream():
    seen: list[tuple[dict[str, Any], str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((json.loads(request.content), request.headers["authorization"]))
        return httpx.Response(200, json=vllm_answer([7], version="2"))

    served = engine(answer, url="https://server:1", api_key="secret", pool="frozen")
    served.policy_version = 2
    for prompt in ([1, 2], [1, 2], [1, 2, 7, 8]):
        await served.generate(prompt, SAMPLING, session="a", deadline_s=5)
    assert {key for _, key in seen} == {"Bearer secret"} and {tree["cache_salt"] for tree, _ in seen} == {"frozen-2"}
    seeds = [tree["sampling_params"]["seed"] for tree, _ in seen]
    assert seeds[0] == seeds[1] != seeds[2] and all(0 <= seed < 2**63 for seed in seeds)
    assert noise(SAMPLING, 2, 31) == noise(SAMPLING, 2, 63) >> 32


async def test_a_prompt_never_gets_more_room_than_the_context_has():
    asked: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["sampling_params"]["max_tokens"])
        return httpx.Response(200, json=vllm_answer([7]))

    served = engine(answer, longest=8)
    await served.generate([1] * 5, SAMPLING, session="a", deadline_s=5)
    full = await served.generate([1] * 8, SAMPLING, session="a", deadline_s=5)
    assert asked == [3] and full.tokens == [] and full.finish is Finish.LENGTH


async def test_what_may_pass_is_tried_again(monkeypatch):
    monkeypatch.setattr(http, "_PAUSE_S", 0.001)
    answers = [httpx.Response(503), httpx.ConnectError("refused"), httpx.Response(200, json=vllm_answer([7]))]

    def answer(request: httpx.Request) -> httpx.Response:
        found = answers.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    served = engine(answer)
    assert (await served.generate([1], SAMPLING, session="a", deadline_s=5)).tokens == [7]
    assert served.statistics()["retries"] == 2 and served.running == 0


async def test_a_server_that_always_fails_is_an_error_and_not_an_endless_loop(monkeypatch):
    monkeypatch.setattr(http, "_PAUSE_S", 0.001)
    seen: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(1)
        return httpx.Response(500, text="out of memory")

    with pytest.raises(ValueError, match=r"http://server:1/inference/v1/generate answered 500: out of memory"):
        await engine(answer).generate([1], SAMPLING, session="a", deadline_s=60)
    assert len(seen) == 5


async def test_a_server_out_of_reach_is_gone_and_one_that_is_slow_is_late(monkeypatch):
    monkeypatch.setattr(http, "_PAUSE_S", 0.001)
    monkeypatch.setattr(http, "_GONE_S", 0.05)

    def refused(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.01)
        raise httpx.ReadTimeout("slow")

    with pytest.raises(EngineGone, match="cannot be reached: ConnectError: connection refused"):
        await engine(refused).generate([1], SAMPLING, session="a", deadline_s=30)
    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        await engine(httpx.MockTransport(slow)).generate([1], SAMPLING, session="a", deadline_s=0.03)


@pytest.mark.parametrize(
    ("status", "text", "advice"),
    [
        (403, "Scale-out endpoints are disabled", "--enable-scale-out"),
        (404, "Not Found", "VLLM_SERVER_DEV_MODE=1"),
        (400, "Weight transfer not configured", "vllm_receiver.py"),
    ],
)
async def test_a_refusal_says_which_switch_is_missing(status, text, advice):
    served = engine(lambda request: httpx.Response(status, text=text))
    with pytest.raises(ValueError, match=advice):
        await served.generate([1], SAMPLING, session="a", deadline_s=5)


async def test_tokens_of_other_weights_are_never_taken_for_ours():
    with pytest.raises(EngineGone, match="sampled with weights 'default', expected '0'"):
        await engine(answering(7, version="default")).generate([1], SAMPLING, session="a", deadline_s=5)
    spans = [{"version": "0", "start": 0, "end": 1}, {"version": "1", "start": 1, "end": 2}]
    with pytest.raises(BadAnswer, match=r"versions \['0', '1'\]"):
        mixed = answering(7, 8, weight_versions=spans)
        await engine(mixed).generate([1], SAMPLING, session="a", deadline_s=5)


@pytest.mark.parametrize(
    "broken",
    [{"finish_reason": "abort"}, {"logprobs": None}, {"logprobs": {"content": [{"token_id": 7, "logprob": None}]}}],
)
async def test_an_answer_that_cannot_be_trained_on_is_an_error(broken):
    with pytest.raises(BadAnswer):
        await engine(answering(7, **broken)).generate([1], SAMPLING, session="a", deadline_s=5)


async def test_pictures_are_refused_and_so_is_a_server_without_weights():
    with pytest.raises(ValueError, match="engine=embedded"):
        await engine(answering(7)).generate([1], SAMPLING, session="a", deadline_s=5, media=[(0, b"")])
    unserved = engine(answering(7))
    unserved.policy_version = -1
    with pytest.raises(RuntimeError, match="no weights yet"):
        await unserved.generate([1], SAMPLING, session="a", deadline_s=5)


async def test_a_hundred_requests_at_once_share_a_few_clients_and_all_come_back():
    under_way = 0
    most = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return httpx.Response(200, json=vllm_answer([json.loads(request.content)["token_ids"][0]]))

    served = engine(httpx.MockTransport(answer))
    calls = [served.generate([i], SAMPLING, session=str(i), deadline_s=30) for i in range(100)]
    found = await asyncio.gather(*calls)
    assert [completion.tokens for completion in found] == [[i] for i in range(100)]
    assert most == 100 and len(served._client._all) == 4  # 32 connections each
