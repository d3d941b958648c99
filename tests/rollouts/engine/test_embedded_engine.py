"""The embedded engine: batching changes no bit, shared pages are never stale, requests end."""

from __future__ import annotations

import asyncio
from random import Random

import numpy as np
import pytest
import torch
from tiny import random_policy, random_weights, tiny_model

from model.decoder import PAGE, NotFinite
from model.kimi.decoder import ReferenceDecoder
from model.kimi.family import Kimi
from rollouts.engine.base import Completion, Engine, Finish, Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine
from rollouts.engine.embedded.pages import CacheFull

CONFIG = tiny_model()
WEIGHTS = random_weights(CONFIG)
DEADLINE_S = 30.0


async def fresh(pages: int = 2048, **settings) -> EmbeddedEngine:
    engine = EmbeddedEngine(CONFIG, pages=pages, **settings)
    await engine.update(Update(version=1, weights=WEIGHTS))
    return engine


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, count).tolist()


async def ask(engine: Engine, prompt: list[int], session: str = "s", *, seed: int = 5, new: int = 12, **sampling):
    wanted = Sampling(seed=seed, max_new_tokens=new, **sampling)
    return await engine.generate(prompt, wanted, session=session, deadline_s=DEADLINE_S)


async def under_way(engine: EmbeddedEngine) -> None:
    """Wait until the engine has sampled a few tokens."""
    start = engine.generated
    while engine.generated < start + 5:
        await asyncio.sleep(0)


def same(first: Completion, second: Completion) -> bool:
    routes = [np.zeros(0) if c.routes is None else c.routes for c in (first, second)]
    equal = (first.tokens, first.logprobs, first.finish) == (second.tokens, second.logprobs, second.finish)
    return equal and np.array_equal(*routes)


async def test_200_streams_at_once_are_each_the_same_as_alone():
    rng = Random(0)
    stem = some_tokens(40, seed=99)
    prompts = [stem[: rng.randrange(40)] + some_tokens(rng.randrange(1, 170), seed=i) for i in range(200)]
    heats = [rng.choice([0.0, 0.7, 1.0]) for _ in prompts]
    lengths = [rng.randrange(1, 20) for _ in prompts]
    together, alone = await fresh(4096), await fresh(4096)

    async def late(i: int) -> Completion:
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0.001)
        return await ask(together, prompts[i], f"s{i}", seed=i, new=lengths[i], temperature=heats[i])

    order = list(range(200))
    rng.shuffle(order)
    crowd = dict(zip(order, await asyncio.gather(*(late(i) for i in order)), strict=True))
    for i, prompt in enumerate(prompts):
        single = await ask(alone, prompt, f"s{i}", seed=i, new=lengths[i], temperature=heats[i])
        assert same(single, crowd[i]), f"stream {i}"
        await alone.release(f"s{i}")
    assert together.statistics()["streams"] == 200 and together.statistics()["generated"] == sum(lengths)


async def test_log_probs_are_those_of_the_training_forward():
    engine = await fresh()
    prompt = some_tokens(150)
    answer = await ask(engine, prompt, new=30, temperature=0.8)
    tokens = torch.tensor([prompt + answer.tokens])
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, len(prompt) :] = True
    with torch.no_grad():
        wanted, _ = random_policy(CONFIG)(tokens, mask, temperature=0.8)
    np.testing.assert_allclose(answer.logprobs, wanted.numpy(), atol=1e-4)


async def test_a_shared_prefix_is_found_and_changes_no_bit():
    engine, cold = await fresh(), await fresh()
    stem = some_tokens(5 * PAGE + 3)
    await ask(engine, stem + some_tokens(9, seed=1), "a")
    warm = await ask(engine, stem + some_tokens(9, seed=2), "b")
    assert engine.statistics()["prefix_hits"] == 5 * PAGE
    assert same(warm, await ask(cold, stem + some_tokens(9, seed=2), "b"))
    await engine.release("a")
    await engine.release("b")
    again = await ask(engine, stem + some_tokens(9, seed=2), "c")
    assert engine.statistics()["prefix_hits"] >= 10 * PAGE  # released pages are still found
    assert same(again, warm)


async def test_of_a_group_that_arrives_at_once_one_computes_what_all_begin_with():
    engine, cold = await fresh(), await fresh()
    stem = some_tokens(20 * PAGE + 5)
    prompts = [stem + some_tokens(9, seed=i) for i in range(6)]
    group = [ask(engine, prompt, f"s{i}", seed=i) for i, prompt in enumerate(prompts)]
    for i, warm in enumerate(await asyncio.gather(*group)):
        assert same(warm, await ask(cold, prompts[i], f"s{i}", seed=i))
        await cold.release(f"s{i}")
        await cold.update(Update(version=1, weights=WEIGHTS))  # nothing is shared there
    assert engine.statistics()["prefix_hits"] == 5 * 20 * PAGE


async def test_who_waits_for_a_shared_page_goes_on_when_its_maker_is_cancelled():
    engine = await fresh()
    stem = some_tokens(40 * PAGE)
    first = asyncio.create_task(ask(engine, [*stem, 1], "a"))
    await asyncio.sleep(0)
    second = asyncio.create_task(ask(engine, [*stem, 2], "b"))
    while not engine.fed:
        await asyncio.sleep(0)
    first.cancel()
    await engine.release("a")
    assert same(await second, await ask(await fresh(), [*stem, 2], "b"))


async def test_the_engine_on_the_reference_decoder_writes_the_same(monkeypatch):
    monkeypatch.setattr(Kimi, "decoder", lambda self, shape, pages: ReferenceDecoder(shape, pages))
    slow = await fresh(64)
    monkeypatch.undo()
    prompt = some_tokens(150)  # longer than one chunk: a step without a sample
    first, second = await ask(slow, prompt, new=4), await ask(await fresh(64), prompt, new=4)
    assert first.tokens == second.tokens
    np.testing.assert_allclose(first.logprobs, second.logprobs, atol=1e-4)
    np.testing.assert_array_equal(first.routes, second.routes)


async def test_continuing_a_session_is_one_long_prompt():
    turns, whole = await fresh(), await fresh()
    prompt = some_tokens(30)
    first = await ask(turns, prompt)
    longer = prompt + first.tokens + some_tokens(25, seed=1)
    fed = turns.fed
    second = await ask(turns, longer)
    assert turns.fed - fed == len(longer) + 12 - 1 - (len(prompt) + 12 - 1)  # nothing is fed twice
    at_once = await ask(whole, longer, "other")
    assert (second.tokens, second.logprobs) == (at_once.tokens, at_once.logprobs)


async def test_routes_tile_the_stream_and_are_the_ones_that_a_forward_chooses():
    engine = await fresh()
    stream, routes = some_tokens(20), []
    for turn in range(3):
        answer = await ask(engine, stream, new=7)
        assert answer.routes is not None
        assert answer.routes_start == sum(map(len, routes))
        stream = stream + answer.tokens
        routes.append(answer.routes)
        assert answer.routes_start + len(answer.routes) == len(stream) - 1  # the last token has not been fed
        stream = stream + some_tokens(5, seed=turn)
    got = np.concatenate(routes)
    assert got.shape[1:] == (2, 2) and got.dtype == np.int16
    shared = await ask(engine, stream[: len(got)], "twin", new=1)  # from shared pages: the routes come along
    np.testing.assert_array_equal(shared.routes, got)
    policy, live = random_policy(CONFIG), []
    for router in policy.routers():
        router.register_forward_hook(lambda _, __, out: live.append(out.ids))
    with torch.no_grad():
        policy.hidden(torch.tensor([stream[: len(got)]]))
    np.testing.assert_array_equal(got, torch.stack(live, dim=1).numpy())


async def test_a_frozen_engine_hands_out_no_routes():
    assert (await ask(await fresh(record_routes=False), some_tokens(5))).routes is None


async def test_a_history_that_was_rendered_anew_is_refused():
    engine = await fresh()
    prompt = some_tokens(20)
    answer = await ask(engine, prompt)
    with pytest.raises(ValueError, match="re-rendered"):
        await ask(engine, [*prompt[:-1], prompt[-1] ^ 1, *answer.tokens, 1])
    with pytest.raises(ValueError, match="re-rendered"):
        await ask(engine, prompt)  # forgets what was sampled


async def test_a_stop_token_ends_the_turn_and_is_part_of_it():
    engine = await fresh()
    free = await ask(engine, some_tokens(10), "free", new=40)
    stop = free.tokens[10]
    answer = await ask(engine, some_tokens(10), "stopped", new=40, stop=(stop,))
    assert answer.finish is Finish.STOP
    assert answer.tokens == free.tokens[: free.tokens.index(stop) + 1]


async def test_the_context_window_ends_a_turn_with_length():
    engine = await fresh()
    room = CONFIG.max_position_embeddings
    answer = await ask(engine, some_tokens(room - 3), "a", new=50)
    assert answer.finish is Finish.LENGTH and len(answer.tokens) == 3
    full = await ask(engine, some_tokens(room), "b")
    assert full.finish is Finish.LENGTH and full.tokens == [] and full.routes is None


async def test_a_deadline_ends_one_request_and_no_other():
    engine, quiet = await fresh(), await fresh()
    prompt = some_tokens(100)
    running = asyncio.create_task(ask(engine, prompt, "long", new=200))
    await under_way(engine)
    late = Sampling(seed=1, max_new_tokens=10_000)
    with pytest.raises(TimeoutError):
        await engine.generate(some_tokens(300, seed=3), late, session="late", deadline_s=0.005)
    with pytest.raises(TimeoutError):
        await engine.generate(some_tokens(9), late, session="too late", deadline_s=0.0)
    assert same(await running, await ask(quiet, prompt, "long", new=200))
    await engine.release("late")
    assert same(await ask(engine, prompt, "next"), await ask(quiet, prompt, "next"))


async def test_releasing_a_session_that_generates_ends_it_and_frees_its_pages_for_others():
    engine, quiet = await fresh(40), await fresh(40)
    doomed = [asyncio.create_task(ask(engine, some_tokens(120, seed=i), f"d{i}", new=900)) for i in range(2)]
    kept = asyncio.create_task(ask(engine, some_tokens(60, seed=7), "kept", new=60))
    await under_way(engine)
    for i in range(2):
        await engine.release(f"d{i}")
    heirs = [await ask(engine, some_tokens(100, seed=20 + i), f"h{i}", new=40) for i in range(2)]  # on the freed pages
    for task in doomed:
        with pytest.raises(RuntimeError, match="released while it generated"):
            await task
    assert same(await kept, await ask(quiet, some_tokens(60, seed=7), "kept", new=60))
    await quiet.release("kept")
    for i, heir in enumerate(heirs):
        assert same(heir, await ask(quiet, some_tokens(100, seed=20 + i), f"h{i}", new=40))
    assert engine.statistics()["streams"] == 3


async def test_a_cancelled_request_leaves_no_work_behind():
    engine = await fresh()
    task = asyncio.create_task(ask(engine, some_tokens(50), new=900))
    await under_way(engine)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await engine.update(Update(version=2, weights=WEIGHTS))  # not refused: nothing runs
    assert (await ask(engine, some_tokens(5), "next")).policy_version == 2


async def test_a_full_cache_is_told_to_whoever_waits_and_the_engine_goes_on():
    engine = await fresh(12)
    with pytest.raises(CacheFull):
        await asyncio.gather(*(ask(engine, some_tokens(100, seed=i), f"s{i}", new=50) for i in range(2)))
    for i in range(2):
        await engine.release(f"s{i}")
    assert same(await ask(engine, some_tokens(30), "a"), await ask(await fresh(), some_tokens(30), "a"))


async def test_a_full_cache_ends_the_youngest_alone():
    engine = await fresh(12)
    asked = [ask(engine, some_tokens(100, seed=i), f"s{i}", new=50) for i in range(2)]
    elder, younger = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(younger, CacheFull)
    assert same(elder, await ask(await fresh(), some_tokens(100, seed=0), "s0", new=50))


async def test_idle_streams_give_their_pages_to_those_who_run_and_go_on_with_the_same_tokens_and_routes():
    crowded, roomy = await fresh(12), await fresh()
    prompts = [some_tokens(60, seed=i) for i in range(5)]  # four pages each, all of them idle after the first turn
    for turn in range(3):
        for i, prompt in enumerate(prompts):
            one, other = [await ask(engine, prompt, f"s{i}", new=6) for engine in (crowded, roomy)]
            assert same(one, other), (turn, i)
            prompt += [*one.tokens, 7 + turn]


async def test_a_nan_reaches_whoever_waits():
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights["norm.weight"][:] = 3e38
    engine = await fresh()
    await engine.update(Update(version=2, weights=weights))
    with pytest.raises(NotFinite):
        await ask(engine, some_tokens(5))


async def test_an_engine_without_weights_says_so():
    with pytest.raises(RuntimeError, match="no weights"):
        await ask(EmbeddedEngine(CONFIG, pages=4), [1])


async def test_an_update_is_refused_while_requests_run():
    engine = await fresh()
    task = asyncio.create_task(ask(engine, some_tokens(50), new=100))
    await under_way(engine)
    with pytest.raises(RuntimeError, match="1 requests run"):
        await engine.update(Update(version=2, weights=WEIGHTS))
    assert (await task).policy_version == 1
    await engine.update(Update(version=2, weights=WEIGHTS))


async def test_nothing_cached_survives_an_update():
    engine, clean = await fresh(), EmbeddedEngine(CONFIG, pages=2048)
    other = random_weights(CONFIG, seed=1)
    await clean.update(Update(version=2, weights=other))
    prompt = some_tokens(100)
    before = await ask(engine, prompt, "a")
    await engine.update(Update(version=2, weights=other))
    hits = engine.statistics()["prefix_hits"]
    after = await ask(engine, prompt, "b")
    assert engine.statistics()["prefix_hits"] == hits
    assert same(after, await ask(clean, prompt, "b"))
    assert (before.policy_version, after.policy_version) == (1, 2)
    assert not same(before, after)
    continued = await ask(engine, [*prompt, *before.tokens, 4], "a")  # a session of before: fed again from its start
    assert continued.routes_start == 0 and same(continued, await ask(clean, [*prompt, *before.tokens, 4], "a"))


async def test_broken_weights_are_refused_and_the_old_ones_go_on():
    engine = await fresh()
    before = await ask(engine, some_tokens(30), "a")
    broken = {**WEIGHTS, "norm.weight": np.full_like(WEIGHTS["norm.weight"], np.nan)}
    with pytest.raises(NotFinite, match=r"norm\.weight"):
        await engine.update(Update(version=2, weights=broken))
    assert engine.policy_version == 1
    assert same(await ask(engine, some_tokens(30), "b"), before)
