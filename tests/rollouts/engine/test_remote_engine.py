"""The traffic between workers and engine actors: batched both ways, and no request waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tiny import random_weights, tiny_model

from rollouts.config import RolloutsConfig
from rollouts.engine import remote
from rollouts.engine.actor import EngineActor
from rollouts.engine.base import Completion, Place, Sampling, Update
from rollouts.engine.built_in import Embedded
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.engine.remote import RemoteEngine

CONFIG = tiny_model(max_position_embeddings=256)
PLACE = Place(pool="policy", number=0, model=CONFIG, rollouts=RolloutsConfig(), tokenizer="")
WEIGHTS = random_weights(CONFIG)


class _Method:
    """``handle.method.remote(...)`` as in Ray: runs at once, awaited or not."""

    def __init__(self, call: Callable[..., Awaitable]) -> None:
        self._call = call

    def remote(self, *args) -> asyncio.Future:
        return asyncio.ensure_future(self._call(*args))


class Replica:
    """An engine actor without Ray; counts calls, and can die."""

    def __init__(self) -> None:
        self.actor = EngineActor(
            Embedded, Place(pool="policy", number=0, model=CONFIG, rollouts=RolloutsConfig(), tokenizer="")
        )
        self.calls: dict[str, int] = {"submit": 0, "poll": 0}
        self.dead = asyncio.Event()

    def __getattr__(self, name: str) -> _Method:
        async def call(*args):
            self.calls[name] += 1
            work = asyncio.create_task(getattr(self.actor, name)(*args))
            await asyncio.wait({work, asyncio.create_task(self.dead.wait())}, return_when=asyncio.FIRST_COMPLETED)
            if self.dead.is_set():
                raise ConnectionError("the actor died")
            return work.result()

        return _Method(call)


async def fresh(replicas: int = 1) -> tuple[RemoteEngine, list[Replica]]:
    handles = [Replica() for _ in range(replicas)]
    for handle in handles:
        await handle.actor.update(Update(version=7), WEIGHTS)
    return RemoteEngine(handles, "worker-0"), handles


async def ask(engine, prompt: list[int], session: str, new: int = 8, deadline_s: float = 20.0) -> Completion:
    sampling = Sampling(seed=len(prompt), max_new_tokens=new)
    return await engine.generate(prompt, sampling, session=session, deadline_s=deadline_s)


@pytest.mark.parametrize("replicas", [1, 3])
async def test_many_sessions_over_any_number_of_replicas_get_what_a_local_engine_says(replicas: int):
    engine, handles = await fresh(replicas)
    local = EmbeddedEngine(CONFIG, pages=512)
    await local.update(Update(version=7, weights=WEIGHTS))
    prompts = [[i, 5, 9] * (1 + i % 7) for i in range(30)]
    answers = await asyncio.gather(*(ask(engine, prompt, f"s{i}") for i, prompt in enumerate(prompts)))
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        wanted = await ask(local, prompt, f"s{i}")
        assert (answer.tokens, answer.logprobs, answer.policy_version) == (wanted.tokens, wanted.logprobs, 7)
        longer = prompt + answer.tokens + [3]
        assert (await ask(engine, longer, f"s{i}")).routes_start == len(longer) - 2  # the same replica knows it
    assert sum(handle.calls["submit"] for handle in handles) < len(prompts) * 2  # the first 30 travelled together
    assert all(handle.actor._engine.statistics()["streams"] for handle in handles)


async def test_a_released_session_is_forgotten_by_its_replica():
    engine, (handle,) = await fresh()
    await ask(engine, [1, 2, 3], "a")
    await engine.release("a")
    await ask(engine, [1, 2, 4], "b")
    assert (await handle.actor.statistics())["streams"] == 1


async def test_a_refusal_travels_back_to_whoever_asked():
    engine, _ = await fresh()
    await ask(engine, [1, 2, 3], "a")
    with pytest.raises(ValueError, match="re-rendered"):
        await ask(engine, [9, 9, 9, 9], "a")
    with pytest.raises(TimeoutError):
        await ask(engine, [1, 2, 3], "b", deadline_s=0.0)


async def test_everyone_who_waits_for_a_dead_replica_hears_of_it():
    engine, (handle,) = await fresh()
    waiting = [asyncio.create_task(ask(engine, [i, 2, 3], f"s{i}", new=240)) for i in range(3)]
    await asyncio.sleep(0.01)
    handle.dead.set()
    for task in waiting:
        with pytest.raises(ConnectionError):
            await task
    with pytest.raises(ConnectionError):
        await ask(engine, [1], "later")


async def test_a_replica_that_hangs_does_not_hold_its_callers_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(remote, "_GRACE_S", 0.05)
    monkeypatch.setattr(remote, "POLL_S", 0.05)
    engine, (handle,) = await fresh()
    monkeypatch.setattr(handle.actor, "poll", lambda client: asyncio.Event().wait())
    with pytest.raises(TimeoutError):
        await ask(engine, [1, 2], "a", deadline_s=5.0)


async def test_cancelling_a_caller_leaves_the_others_their_answers():
    engine, _ = await fresh()
    doomed = asyncio.create_task(ask(engine, [4, 4], "doomed", new=200))
    kept = asyncio.create_task(ask(engine, [5, 5], "kept", new=50))
    await asyncio.sleep(0.01)
    doomed.cancel()
    await engine.release("doomed")
    assert len((await kept).tokens) == 50
    with pytest.raises(asyncio.CancelledError):
        await doomed


async def test_an_engine_that_is_replaced_takes_no_answer_of_its_successor():
    engine, handles = await fresh()
    await ask(engine, [1, 2, 3], "a")
    polls = handles[0].calls["poll"]
    successor = RemoteEngine(handles, "worker-0")  # the same worker, after a halt; the old poll may still be under way
    answer = await asyncio.wait_for(ask(successor, [4, 5, 6], "b"), 10.0)
    assert len(answer.tokens) == 8 and handles[0].calls["poll"] > polls
