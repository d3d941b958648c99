"""A server's weights change while episodes run: each turn is of one version, and none is lost."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from rollouts.config import HttpConfig
from rollouts.engine.base import Completion, Delivery, Finish, Sampling, Update
from rollouts.engine.servers import served
from rollouts.engine.servers.dialects import Vllm
from rollouts.engine.servers.served import ServedEngine
from rollouts.engine.servers.weight_update import Deliverer

PROBE = [1, 2, 3, 4]
SAMPLING = Sampling(seed=1, max_new_tokens=8, stop=(7,))


class Server(httpx.AsyncBaseTransport):
    """vLLM's routes. A generation waits for ``go``; ``cut`` counts those whose client went away."""

    def __init__(self) -> None:
        self.go, self.loaded, self.label, self.cut = asyncio.Event(), 0, "default", 0
        self.asked: list[str] = []  # the label at the start of each generation
        self.running = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else {}
        answer: dict[str, Any] = {}
        if request.url.path == "/collective_rpc":
            assert self.running == 0, "weights change under a running request"
            self.loaded = int(body["kwargs"]["weights_path"][-1])
        elif request.url.path == "/update_weight_version":
            self.label = body["new_version"]
        elif (
            request.url.path == "/inference/v1/generate" and body["sampling_params"].get("prompt_logprobs") is not None
        ):
            scores = [-1.0 - self.loaded] * (len(PROBE) - 1)
            tokens = [{str(t): {"logprob": s}} for t, s in zip(PROBE[1:], scores, strict=True)]
            answer["prompt_logprobs"] = [None, *tokens]
        elif request.url.path == "/inference/v1/generate":
            self.asked.append(self.label)
            self.running += 1
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.cut += 1
                raise
            finally:
                self.running -= 1
            content = [{"token_id": 7, "logprob": -0.5}]
            versions = [{"version": self.label, "start": 0, "end": 1}]
            choice = {"finish_reason": "stop", "logprobs": {"content": content}, "weight_versions": versions}
            answer["choices"] = [choice]
        return httpx.Response(200, json=answer, request=request)


async def begun() -> tuple[Server, ServedEngine]:
    """A server with version 0."""
    server = Server()
    engine = ServedEngine("http://server:1", Vllm(), pool="policy", longest=100, transport=server)
    engine._deliverer = Deliverer(engine, HttpConfig(tolerance=1.0))
    await engine.update(update(0, in_flight=False))
    return server, engine


def update(version: int, *, in_flight: bool = True) -> Update:
    wanted = [-1.0 - version] * (len(PROBE) - 1)
    delivery = Delivery(version=version, folder=Path(f"/weights/{version}"), probe=PROBE, logprobs=wanted)
    return Update(version=version, delivery=delivery, in_flight=in_flight)


def ask(engine: ServedEngine, session: str = "a", deadline_s: float = 20.0) -> asyncio.Task[Completion]:
    return asyncio.create_task(engine.generate([1, 2], SAMPLING, session=session, deadline_s=deadline_s))


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.005)


async def test_turns_under_way_end_under_the_old_weights_and_later_ones_wait_for_the_new():
    server, engine = await begun()
    first = ask(engine)
    await until(lambda: server.running == 1)
    change = asyncio.create_task(engine.update(update(1)))
    await asyncio.sleep(0.05)
    later = ask(engine, "b")
    await asyncio.sleep(0.05)
    assert server.running == 1 and not change.done()  # the later one waits here, not there
    server.go.set()
    assert (await first).policy_version == 0
    await change
    assert (await later).policy_version == 1 and server.asked == ["0", "1"] and server.cut == 0


async def test_a_turn_that_takes_too_long_is_cut_and_sampled_under_the_new_weights(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(served, "_DRAIN_S", 0.05)
    server, engine = await begun()
    slow = [ask(engine, session) for session in "ab"]
    await until(lambda: server.running == 2)
    await engine.update(update(1))
    server.go.set()
    found = [await one for one in slow]
    assert [one.policy_version for one in found] == [1, 1] and server.cut == 2
    assert server.asked == ["0", "0", "1", "1"] and all(one.tokens == [7] for one in found)


async def test_an_interrupted_turn_returns_no_tokens_and_others_go_on():
    server, engine = await begun()
    halted, other = ask(engine, "a"), ask(engine, "b")
    await until(lambda: server.running == 2)
    await engine.interrupt({"a"})
    found = await halted
    assert (found.tokens, found.finish, server.running) == ([], Finish.INTERRUPTED, 1)
    server.go.set()
    assert (await other).finish is Finish.STOP


async def test_a_callers_own_cancellation_is_not_taken_for_a_cut():
    server, engine = await begun()
    gone = ask(engine)
    await until(lambda: server.running == 1)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    await until(lambda: server.cut == 1)
    server.go.set()
    assert (await ask(engine)).policy_version == 0


async def test_the_deadline_counts_the_wait_for_the_weights():
    server, engine = await begun()
    running = ask(engine, "a")
    await until(lambda: server.running == 1)
    change = asyncio.create_task(engine.update(update(1)))
    await asyncio.sleep(0.05)
    with pytest.raises(TimeoutError):
        await ask(engine, "b", deadline_s=0.05)
    server.go.set()
    await asyncio.gather(running, change)


async def test_between_steps_nothing_may_run():
    server, engine = await begun()
    running = ask(engine)
    await until(lambda: server.running == 1)
    with pytest.raises(RuntimeError, match="while 1 requests run"):
        await engine.update(update(1, in_flight=False))
    server.go.set()
    assert (await running).policy_version == 0


async def test_a_turn_that_waits_for_the_weights_can_be_interrupted():
    server, engine = await begun()
    engine._open.clear()  # an update that takes its time
    held = asyncio.create_task(engine.generate([5], SAMPLING, session="a", deadline_s=60))
    await asyncio.sleep(0.01)
    await engine.interrupt({"a"})
    done = await asyncio.wait_for(held, 5)
    assert done.finish is Finish.INTERRUPTED and not done.tokens and not server.asked
    assert not engine._held and not engine._cut
