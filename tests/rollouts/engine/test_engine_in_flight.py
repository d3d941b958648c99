"""New weights in flight, and interrupted requests: every token is that of its own version."""

from __future__ import annotations

import asyncio
from random import Random

import numpy as np
import pytest
from tiny import random_weights, tiny_model

from rollouts.engine.base import Completion, Finish, Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine

CONFIG = tiny_model()
WEIGHTS = {version: random_weights(CONFIG, seed=version) for version in (1, 2, 3)}
DEADLINE_S = 30.0


async def serving(version: int) -> EmbeddedEngine:
    engine = EmbeddedEngine(CONFIG, pages=2048)
    await engine.update(Update(version=version, weights=WEIGHTS[version]))
    return engine


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, count).tolist()


async def ask(engine: EmbeddedEngine, prompt: list[int], session: str, new: int = 60, seed: int = 5) -> Completion:
    sampling = Sampling(seed=seed, max_new_tokens=new)
    return await engine.generate(prompt, sampling, session=session, deadline_s=DEADLINE_S)


async def sampled(engine: EmbeddedEngine, count: int) -> None:
    start = engine.generated
    while engine.generated < start + count:
        await asyncio.sleep(0)


async def by_parts(prompt: list[int], versions: tuple[int, ...], new: int, seed: int = 5) -> Completion:
    """The same answer by new engines, one per version, each prefilled with all earlier tokens."""
    tokens, logprobs = list(prompt), []
    for version in dict.fromkeys(versions):
        engine, count = await serving(version), versions.count(version)
        part = await ask(engine, tokens, "s", count, seed)
        tokens, logprobs = tokens + part.tokens, logprobs + part.logprobs
    new_tokens = tokens[len(prompt) :]
    return Completion(tokens=new_tokens, logprobs=logprobs, finish=Finish.LENGTH, policy_version=versions[-1])


async def test_streams_go_on_under_new_weights_as_if_a_new_engine_had_been_given_what_is_there():
    engine, rng = await serving(1), Random(0)
    prompts = [some_tokens(rng.randrange(1, 200), seed=i) for i in range(12)]
    running = [asyncio.create_task(ask(engine, p, f"s{i}", seed=i)) for i, p in enumerate(prompts)]
    for version in (2, 3):
        await sampled(engine, 150)
        await engine.update(Update(version=version, weights=WEIGHTS[version], in_flight=True))
    answers = await asyncio.gather(*running)
    assert any(len(set(answer.versions)) == 3 for answer in answers)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        versions = answer.versions or (answer.policy_version,) * 60
        assert list(versions) == sorted(versions) and len(versions) == len(answer.tokens) == 60
        wanted = await by_parts(prompt, versions, 60, seed=i)
        assert (answer.tokens, answer.logprobs) == (wanted.tokens, wanted.logprobs), f"stream {i}: {versions}"


async def test_routes_stay_those_that_a_token_was_sampled_with_and_still_tile_the_stream():
    engine, old = await serving(1), await serving(1)
    prompt = some_tokens(40)
    running = asyncio.create_task(ask(engine, prompt, "s"))
    await sampled(engine, 20)
    await engine.update(Update(version=2, weights=WEIGHTS[2], in_flight=True))
    first = await running
    assert first.routes is not None and first.routes_start == 0 and len(first.routes) == 99
    before = first.versions.count(1)
    wanted = await ask(old, prompt, "s", new=before)
    assert wanted.routes is not None
    np.testing.assert_array_equal(first.routes[: 40 + before - 1], wanted.routes)
    await engine.update(Update(version=3, weights=WEIGHTS[3], in_flight=True))  # between two turns
    second = await ask(engine, prompt + first.tokens + some_tokens(5), "s", new=4)
    assert second.routes is not None and second.routes_start == 99 and len(second.routes) == 1 + 5 + 4 - 1
    assert second.versions == () and second.policy_version == 3


async def test_no_page_of_older_weights_is_found_after_an_update_in_flight():
    engine, clean = await serving(1), await serving(2)
    prompt = some_tokens(100)
    running = asyncio.create_task(ask(engine, prompt, "a", new=200))
    await sampled(engine, 20)
    await engine.update(Update(version=2, weights=WEIGHTS[2], in_flight=True))
    twin, wanted = await ask(engine, prompt, "b"), await ask(clean, prompt, "b")
    assert (twin.tokens, twin.logprobs) == (wanted.tokens, wanted.logprobs)
    await running


async def test_an_interrupted_turn_and_its_rest_are_the_turn():
    engine, quiet = await serving(1), await serving(1)
    prompt = some_tokens(50)
    whole = await ask(quiet, prompt, "s")
    running = asyncio.create_task(ask(engine, prompt, "s"))
    other = asyncio.create_task(ask(engine, some_tokens(30), "other"))
    await sampled(engine, 30)
    await engine.interrupt({"s"})
    part = await running
    assert part.finish is Finish.INTERRUPTED and 0 < len(part.tokens) < 60
    assert part.tokens == whole.tokens[: len(part.tokens)]
    rest = await ask(engine, prompt + part.tokens, "s", new=60 - len(part.tokens))
    assert part.tokens + rest.tokens == whole.tokens and part.logprobs + rest.logprobs == whole.logprobs
    assert part.routes is not None and rest.routes is not None
    np.testing.assert_array_equal(np.concatenate([part.routes, rest.routes]), whole.routes)
    assert (await other).finish is Finish.LENGTH  # nobody else was cut short


@pytest.mark.parametrize("fed", [0, 1])
async def test_interrupting_while_the_stream_is_fed_again_loses_no_route(fed: int):
    engine = await serving(1)
    prompt = some_tokens(300)
    first = await ask(engine, prompt, "s", new=5)
    await engine.update(Update(version=2, weights=WEIGHTS[2], in_flight=True))
    running = asyncio.create_task(ask(engine, prompt + first.tokens, "s", new=9))
    while engine.fed < 305 + fed:  # nothing yet of the second feed, or one chunk of three
        await asyncio.sleep(0)
        if fed == 0:
            break
    await engine.interrupt({"s"})
    part = await running
    assert part.tokens == [] and part.routes is not None
    rest = await ask(engine, prompt + first.tokens, "s", new=9)
    assert first.routes is not None and rest.routes is not None
    starts = [answer.routes_start for answer in (first, part, rest)]
    assert starts == [0, 304, 304] and len(part.routes) == 0 and len(rest.routes) == 9
