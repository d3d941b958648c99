"""The learner with pictures: the engine's numbers, a gradient independent of splits, freezing, learning."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from cut_rows import split_row
from seeing import PAD, a_picture, seeing_model, seeing_policy, with_pictures
from tiny import random_weights, tiny_model
from torch import Tensor

from envs.world.site.pictures import draw_table
from model.decoder import check_weights, export_weights
from model.kimi.decoder import weight_shapes
from model.kimi.family import Kimi
from model.kimi.vision.picture_size import K25_LIMITS
from model.kimi.vision.pictures import KimiPictures
from model.policy_files import load_policy, save_policy
from parl.learn.batch import TextRow, lay
from parl.learn.config import OptimizerConfig
from parl.learn.learner import Learner
from parl.learn.objective.base import Objective
from parl.learn.objective.cispo import Cispo
from parl.learn.objective.grpo import Grpo
from parl.learn.objective.gspo import Gspo
from parl.learn.objective.k25 import K25
from parl.learn.rows import Row, denominator
from rollouts.engine.base import Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine

pytest.importorskip("PIL", reason="pictures: pip install -e '.[vision]'")
CONFIG = seeing_model()
WEIGHTS = export_weights(seeing_policy(CONFIG))
OPTIMIZER = OptimizerConfig(lr=1e-3, muon_lr=3e-3)
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def shared() -> Learner:
    return Learner(CONFIG, OPTIMIZER, seed=0)


@pytest.fixture
def learner(shared: Learner) -> Learner:
    shared.load_weights(WEIGHTS)
    shared.optimizer.state.clear()
    shared.engine.zero_grad()
    return shared


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Streams of two turns sampled by the engine, each before and after pictures; the last one without."""

    async def sample() -> list[Row]:
        engine = EmbeddedEngine(CONFIG, pages=512)
        await engine.update(Update(version=1, weights=WEIGHTS))
        return list(await asyncio.gather(*(_sampled_row(engine, i) for i in range(5))))

    return asyncio.run(sample())


async def _sampled_row(engine: EmbeddedEngine, number: int) -> Row:
    rng = Random(number)
    tokens: list[int] = []
    media: list[tuple[int, bytes]] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    routes: list[np.ndarray] = []
    for turn in range(2):
        words = [rng.randrange(PAD) for _ in range(rng.randrange(5, 30))]
        shown = [] if number == 4 else [a_picture(10 * number + turn, 1 + number)]
        read, places = with_pictures([words, *shown, words[:3]])
        media += [(len(tokens) + at, png) for at, png in places]
        sampling = Sampling(seed=number, temperature=TEMPERATURE, max_new_tokens=rng.randrange(5, 20))
        answer = await engine.generate(tokens + read, sampling, session=f"s{number}", deadline_s=60.0, media=media)
        tokens += read + answer.tokens
        mask += [False] * len(read) + [True] * len(answer.tokens)
        logprobs += [0.0] * len(read) + answer.logprobs
        assert answer.routes is not None
        routes.append(answer.routes)
    shape = np.array(mask)
    return Row(
        key=(f"task {number % 3}", number, "0"),
        tokens=np.array(tokens, np.int32),
        mask=shape,
        logprobs=np.array(logprobs, np.float32),
        advantages=np.where(shape, np.float32(rng.uniform(-1, 1)), np.float32(0)),
        routes=np.concatenate([*routes, np.full((1, *routes[0].shape[1:]), -1, np.int16)]),
        media=tuple(media),
    )


def step(learner: Learner, rows: list[Row], micro_tokens: int = 4096) -> dict[str, float]:
    settings = {"denominator": denominator(rows), "temperature": TEMPERATURE, "micro_tokens": micro_tokens}
    return learner.policy_step(rows, K25(tau=0.1), **settings)


def gradient(learner: Learner, rows: list[Row], monkeypatch: pytest.MonkeyPatch, micro_tokens: int = 4096) -> Tensor:
    found: list[Tensor] = []

    def keep() -> None:
        found.append(torch.cat([p.grad.double().flatten() for p in learner.model.parameters()]))
        learner.engine.zero_grad()

    with monkeypatch.context() as patch:
        patch.setattr(learner.engine, "step", keep)
        step(learner, rows, micro_tokens)
    return found[0]


def distance(first: Tensor, second: Tensor) -> float:
    return float((first - second).norm() / second.norm())


def changed(learner: Learner) -> set[str]:
    """Names of the weights that differ from ``WEIGHTS``."""
    return {name for name, array in learner.weights().items() if not np.array_equal(array, WEIGHTS[name])}


def with_other_pictures(rows: list[Row]) -> list[Row]:
    """``rows`` with other pictures of the same sizes."""
    others = [tuple((at, a_picture(99 + at, 1 + i)) for at, _ in row.media) for i, row in enumerate(rows)]
    return [replace(row, media=media) for row, media in zip(rows, others, strict=True)]


def test_the_engines_log_probs_are_the_learners(learner: Learner, rows: list[Row]):
    metrics = step(learner, rows)
    assert metrics["logprob_gap"] < 1e-4
    assert {name for name in changed(learner) if name.startswith("vision.vision_tower.")}


def test_another_picture_is_seen_in_the_gap(learner: Learner, rows: list[Row]):
    assert step(learner, with_other_pictures(rows))["logprob_gap"] > 1e-3


def test_rows_may_be_cut_and_reordered(learner: Learner, rows: list[Row], monkeypatch):
    wanted = gradient(learner, rows, monkeypatch)
    cut = [piece for row in rows for piece in split_row(row, 3)]
    assert len(cut) == 15 and any(len(piece.media) == 1 for piece in cut)
    assert distance(gradient(learner, cut, monkeypatch), wanted) < 1e-5
    for micro_tokens in (1, 150):
        assert distance(gradient(learner, rows[::-1], monkeypatch, micro_tokens), wanted) < 1e-5


def test_a_batch_without_pictures_trains_on(learner: Learner, rows: list[Row]):
    """The vision tower gets no gradient then, which DeepSpeed's reduction must accept."""
    step(learner, [rows[4]])
    assert changed(learner) and not any(name.startswith("vision.") for name in changed(learner))
    step(learner, rows)
    assert any(name.startswith("vision.") for name in changed(learner))


def test_a_frozen_tower_stays_and_its_projector_learns(rows: list[Row], tmp_path: Path):
    frozen = Learner(CONFIG, OPTIMIZER.model_copy(update={"freeze_tower": True}), seed=0)
    frozen.load_weights(WEIGHTS)
    frozen.policy_step(rows[4:], K25(), denominator=9, temperature=TEMPERATURE, micro_tokens=4096)
    metrics = step(frozen, rows)
    assert metrics["grad_norm"] > 0
    moved = {name for name in changed(frozen) if name.startswith("vision.")}
    assert moved == {name for name in WEIGHTS if name.startswith("vision.mm_projector.")}
    frozen.save(tmp_path, "a")
    kept = frozen.weights()
    step(frozen, rows)
    frozen.load(tmp_path, "a")
    assert all(np.array_equal(array, kept[name]) for name, array in frozen.weights().items())


def test_log_probs_of_the_policy_and_of_the_reference_see_too(learner: Learner, rows: list[Row]):
    learner.set_reference(WEIGHTS)
    others = [
        replace(row, media=tuple((at, a_picture(99 + at, 1 + i)) for at, _ in row.media)) for i, row in enumerate(rows)
    ]
    for reference in (False, True):
        found = learner.logprobs(rows, temperature=TEMPERATURE, micro_tokens=150, reference=reference)
        wrong = learner.logprobs(others, temperature=TEMPERATURE, micro_tokens=150, reference=reference)
        for number, row in enumerate(rows):
            assert np.abs(found[number] - row.logprobs).max() < 1e-4
            assert (np.abs(wrong[number] - row.logprobs).max() > 1e-3) == bool(row.media)


@pytest.mark.parametrize(
    "objective",
    [K25(kl=0.2), Grpo(correction="icepop"), Gspo(), Cispo(correction="tis")],
    ids=lambda objective: objective.name,
)
def test_every_objective_trains_the_vision_side(learner: Learner, rows: list[Row], objective: Objective):
    learner.set_reference(WEIGHTS)
    own = [learner.logprobs(rows, temperature=TEMPERATURE, micro_tokens=4096, reference=r) for r in (False, True)]
    scored = [replace(row, proximal=p, reference=r) for row, p, r in zip(rows, *own, strict=True)]
    cut = scored if objective.whole_traces else [piece for row in scored for piece in split_row(row, 2)]
    settings = {"denominator": denominator(rows), "temperature": TEMPERATURE, "micro_tokens": 4096}
    metrics = learner.policy_step(cut, objective, **settings)
    assert metrics["logprob_gap"] < 1e-4
    assert {name for name in changed(learner) if name.startswith("vision.vision_tower.")}


def test_what_is_imitated_beside_reinforcement_may_show_pictures(learner: Learner, rows: list[Row]):
    texts, blind = [reading_row(seed) for seed in range(3)], rows[4:]
    settings = {"denominator": denominator(blind), "temperature": TEMPERATURE, "micro_tokens": 4096}
    metrics = learner.policy_step(blind, K25(ptx=0.5), texts=texts, text_denominator=3.0, **settings)
    assert metrics["ptx_loss"] == pytest.approx(loss_before(texts), rel=1e-4)
    assert {name for name in changed(learner) if name.startswith("vision.vision_tower.")}


def test_qk_clip_scales_heads_that_look_at_pictures_and_nothing_else(rows: list[Row]):
    plain, clipped = (Learner(CONFIG, OPTIMIZER.model_copy(update={"qk_clip": tau}), seed=0) for tau in (None, 0.5))
    for one in (plain, clipped):
        one.load_weights(WEIGHTS)
    step(plain, rows)
    metrics = step(clipped, rows)
    assert metrics["max_logit"] > 0.5 and metrics["clipped_heads"] > 0
    before, after = plain.weights(), clipped.weights()
    scaled = {name for name in before if not np.array_equal(before[name], after[name])}
    assert scaled and all(name.endswith(("q_b_proj.weight", "kv_b_proj.weight")) for name in scaled)


def test_pictures_for_a_policy_without_eyes_are_refused(rows: list[Row]):
    config = tiny_model()
    blind = Learner(config, OPTIMIZER, seed=0)
    blind.load_weights(random_weights(config))
    with pytest.raises(ValueError, match="no vision section"):
        step(blind, rows[:1])


def test_a_policys_folder_carries_its_vision_side(tmp_path: Path, tokenizer):
    save_policy(tmp_path, CONFIG, WEIGHTS, tokenizer, {})
    weights, config, _, _ = load_policy(tmp_path, Kimi())
    assert config == CONFIG
    assert all(np.array_equal(weights[name], array) for name, array in WEIGHTS.items())
    check_weights(weight_shapes(config), weights)


def reading_row(seed: int) -> TextRow:
    """A picture of one row, and its tens digit as the only token that is trained."""
    rng = Random(seed)
    value = str(rng.randint(10, 99))
    tokens, media = with_pictures([[1, 2], draw_table([value], rng), [3, 10 + int(value[0])]])
    weights = np.zeros(len(tokens), np.float32)
    weights[-1] = 1.0
    return TextRow(tokens=np.array(tokens, np.int32), weights=weights, media=tuple(media))


def loss_before(rows: list[TextRow]) -> float:
    """Of the policy with ``WEIGHTS``."""
    policy = seeing_policy(CONFIG)
    batch = lay(rows, lambda row: row.weights > 0, KimiPictures(K25_LIMITS))
    with torch.no_grad():
        return -float(policy(**batch.inputs)[0].mean())


def loss_on(learner: Learner, rows: list[TextRow]) -> float:
    batch = lay(rows, lambda row: row.weights > 0, KimiPictures(K25_LIMITS))
    learner.model.eval()
    with torch.no_grad():
        logprobs, _ = learner.model(**batch.inputs)
    learner.model.train()
    return -float(logprobs.mean())


@pytest.mark.slow
def test_training_learns_to_read_pictures_it_has_not_seen():
    """Nine tens digits are equally frequent: guessing stays at ln 9 = 2.20."""
    learner = Learner(seeing_model(vocab_size=720), OptimizerConfig(lr=3e-3, muon_lr=1e-2), seed=1)
    held_out = [reading_row(10_000 + seed) for seed in range(60)]
    before = loss_on(learner, held_out)
    for number in range(80):
        batch = [reading_row(32 * number + seed) for seed in range(32)]
        learner.text_step(batch, denominator=32.0, micro_tokens=8192, lr_scale=1.0)
    assert loss_on(learner, held_out) < np.log(9) - 0.7 < before
