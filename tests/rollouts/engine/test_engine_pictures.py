"""The engine with pictures: the learner's numbers, the same bits in any batch, pages keyed by content."""

from __future__ import annotations

import asyncio
from random import Random

import numpy as np
import pytest
import torch
from seeing import PAD, a_picture, seeing_model, seeing_policy, with_pictures
from tiny import tiny_model

from model.decoder import PAGE, export_weights
from model.kimi.decoder import ReferenceDecoder
from model.kimi.family import Kimi
from model.kimi.vision.media import MediaBatch, picture
from model.kimi.vision.picture_encoder import PictureEncoder
from rollouts.engine.base import Completion, Pictures, Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine

pytest.importorskip("PIL", reason="pictures: pip install -e '.[vision]'")
CONFIG = seeing_model()
POLICY = seeing_policy(CONFIG)
WEIGHTS = export_weights(POLICY)
DEADLINE_S = 60.0
Prompt = tuple[list[int], list[tuple[int, bytes]]]


async def fresh(pages: int = 1024) -> EmbeddedEngine:
    engine = EmbeddedEngine(CONFIG, pages=pages)
    await engine.update(Update(version=1, weights=WEIGHTS))
    return engine


def words(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, PAD, count).tolist()


def some_prompt(seed: int) -> Prompt:
    """Words, a picture, words, perhaps another picture, at various positions in pages."""
    rng = Random(seed)
    parts: list[list[int] | bytes] = [words(rng.randrange(1, 40), seed), a_picture(seed, rng.randint(1, 9))]
    parts.append(words(rng.randrange(1, 40), seed + 1))
    if rng.random() < 0.5:
        parts += [a_picture(seed + 7, 2), words(5, seed + 2)]
    return with_pictures(parts)


async def ask(engine: EmbeddedEngine, prompt: list[int], media: Pictures, session: str = "s", **sampling) -> Completion:
    wanted = Sampling(**{"seed": 5, "max_new_tokens": 12, **sampling})
    return await engine.generate(prompt, wanted, session=session, deadline_s=DEADLINE_S, media=media)


def same(first: Completion, second: Completion) -> bool:
    assert first.routes is not None and second.routes is not None
    equal = (first.tokens, first.logprobs, first.finish) == (second.tokens, second.logprobs, second.finish)
    return equal and np.array_equal(first.routes, second.routes)


def learner_logprobs(prompt: list[int], media: Pictures, answer: Completion, heat: float) -> np.ndarray:
    tokens = torch.tensor([prompt + answer.tokens])
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, len(prompt) :] = True
    places = tokens == PAD
    places[:, len(prompt) :] = False  # a placeholder that was sampled is a token as any other
    batch = MediaBatch.of([picture(png) for _, png in media], places)
    with torch.no_grad():
        return POLICY(tokens, mask, temperature=heat, media=batch)[0].numpy()


async def test_log_probs_are_those_of_the_training_forward():
    engine = await fresh()
    for seed in range(8):
        prompt, media = some_prompt(seed)
        answer = await ask(engine, prompt, media, f"s{seed}", temperature=0.8, max_new_tokens=25)
        np.testing.assert_allclose(answer.logprobs, learner_logprobs(prompt, media, answer, 0.8), atol=1e-4)
        blind = await ask(engine, prompt, [], f"blind{seed}", temperature=0.8, max_new_tokens=25)
        assert blind.logprobs[0] != answer.logprobs[0]  # it did look


async def test_a_sampled_placeholder_is_a_token_like_any_other():
    weights = dict(WEIGHTS)
    weights["lm_head.weight"] = weights["lm_head.weight"].copy()
    weights["lm_head.weight"][PAD] *= 6.0
    engine = EmbeddedEngine(CONFIG, pages=256)
    await engine.update(Update(version=1, weights=weights))
    prompt, media = some_prompt(1)
    for seed in range(20):
        answer = await ask(engine, prompt, media, f"s{seed}", seed=seed, max_new_tokens=30)
        if PAD in answer.tokens[:-1]:
            break
    else:
        pytest.fail("no placeholder was sampled")
    POLICY.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    expected = learner_logprobs(prompt, media, answer, 1.0)
    POLICY.load_state_dict({name: torch.from_numpy(array) for name, array in WEIGHTS.items()})
    np.testing.assert_allclose(answer.logprobs, expected, atol=1e-4)


async def test_60_streams_at_once_are_each_the_same_as_alone():
    prompts = [some_prompt(seed % 40) for seed in range(60)]  # some see the same
    together, alone = await fresh(), await fresh()
    crowd = await asyncio.gather(*(ask(together, *prompt, f"s{i}", seed=i) for i, prompt in enumerate(prompts)))
    for i, prompt in enumerate(prompts):
        assert same(await ask(alone, *prompt, f"s{i}", seed=i), crowd[i]), f"stream {i}"
        await alone.release(f"s{i}")


async def test_pages_are_shared_where_the_pictures_are_the_same_and_only_there():
    engine, cold = await fresh(), await fresh()
    stem, tail = words(PAGE - 3), words(9, 1)
    first, other = (with_pictures([stem, a_picture(seed, 9), tail]) for seed in (1, 2))
    assert first[0] == other[0]  # the same tokens
    await ask(engine, *first, "a")
    await ask(engine, *first, "b")
    whole = (len(first[0]) - 1) // PAGE * PAGE
    assert whole > PAGE and engine.statistics()["prefix_hits"] == whole
    seen = await ask(engine, *other, "c")
    assert engine.statistics()["prefix_hits"] == whole  # not a page: the picture begins within the first one
    assert same(seen, await ask(cold, *other, "c"))
    far = (
        with_pictures([words(2 * PAGE + 3), a_picture(1), tail]),
        with_pictures([words(2 * PAGE + 3), a_picture(2), tail]),
    )
    await ask(engine, *far[0], "d")
    hits = engine.statistics()["prefix_hits"]
    await ask(engine, *far[1], "e")
    assert engine.statistics()["prefix_hits"] - hits == 2 * PAGE  # what lies before the picture


async def test_a_picture_is_encoded_once_until_the_weights_change():
    engine = await fresh()
    prompt, media = with_pictures([words(5), a_picture(1), words(3), a_picture(1), words(3)])
    first = await ask(engine, prompt, media, "a")
    await ask(engine, prompt, media, "b")
    assert engine._pictures is not None and engine._pictures.encoded == 1
    last = "vision.mm_projector.out_proj.weight"
    changed = WEIGHTS | {last: WEIGHTS[last] * 1.5}
    for session in ("a", "b"):
        await engine.release(session)
    await engine.update(Update(version=2, weights=changed))
    second = await ask(engine, prompt, media, "a")
    assert engine._pictures.encoded == 2
    assert second.logprobs[0] != first.logprobs[0]  # the tower's weights travel with the policy's
    with pytest.raises(ValueError, match=r"vision\.mm_projector"):
        partly = {n: a for n, a in WEIGHTS.items() if n != "vision.mm_projector.out_proj.bias"}
        await engine.update(Update(version=3, weights=partly))


async def test_continuing_a_session_with_another_picture_is_one_long_prompt():
    turns, whole = await fresh(), await fresh()
    prompt, media = with_pictures([words(30), a_picture(1), words(4)])
    first = await ask(turns, prompt, media)
    more, later = with_pictures([words(3, 1), a_picture(2), words(5, 2)])
    start = len(prompt) + len(first.tokens)
    longer, all_media = prompt + first.tokens + more, [*media, *((start + at, png) for at, png in later)]
    second, at_once = await ask(turns, longer, all_media), await ask(whole, longer, all_media, "other")
    assert (second.tokens, second.logprobs) == (at_once.tokens, at_once.logprobs)
    exchanged = [(media[0][0], a_picture(3)), *all_media[1:]]
    with pytest.raises(ValueError, match="does not extend the stream"):
        await ask(turns, longer + second.tokens + [1], exchanged)


async def test_the_engine_on_the_reference_decoder_writes_the_same(monkeypatch):
    monkeypatch.setattr(Kimi, "decoder", lambda self, shape, pages: ReferenceDecoder(shape, pages))
    slow = await fresh(64)
    monkeypatch.undo()
    prompt, media = some_prompt(3)
    first = await ask(slow, prompt, media, max_new_tokens=4)
    second = await ask(await fresh(64), prompt, media, max_new_tokens=4)
    assert first.tokens == second.tokens
    np.testing.assert_allclose(first.logprobs, second.logprobs, atol=1e-4)


async def test_pictures_that_do_not_fit_their_prompt_are_refused():
    engine = await fresh()
    prompt, media = with_pictures([words(5), a_picture(1), words(3)])
    for bad in ([(4, media[0][1])], [(6, media[0][1])], [media[0], media[0]], [(5, a_picture(1, 9))]):
        with pytest.raises(ValueError, match="placeholders are not there"):
            await ask(engine, prompt, bad)
    with pytest.raises(ValueError, match="no PNG file"):
        await ask(engine, prompt, [(5, b"GIF89a")])
    plain = EmbeddedEngine(tiny_model(), pages=64)
    blind = {name: array for name, array in WEIGHTS.items() if not name.startswith("vision.")}
    await plain.update(Update(version=1, weights=blind))
    with pytest.raises(ValueError, match="no vision section"):
        await ask(plain, prompt, media)


def test_features_do_not_depend_on_what_else_is_encoded_nor_on_threads():
    assert CONFIG.vision is not None
    one, two = PictureEncoder(CONFIG.vision), PictureEncoder(CONFIG.vision)
    one.load(WEIGHTS)
    two.load(WEIGHTS)
    pictures = [a_picture(seed, 1 + seed % 5) for seed in range(8)]
    alone = [one.rows(png) for png in pictures]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    backwards = [two.rows(png) for png in reversed(pictures)][::-1]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert all(np.array_equal(a, b) for a, b in zip(alone, backwards, strict=True))
