"""The learner: the engine's numbers, a gradient independent of splits and order, and refusals."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from cut_rows import split_row
from tiny import random_weights, tiny_model
from torch import Tensor

from parl.learn.batch import TextRow
from parl.learn.config import OptimizerConfig
from parl.learn.learner import Learner, NotFiniteLoss
from parl.learn.objective.k25 import K25
from parl.learn.rows import Row, denominator
from parl.learn.shard.optimizer import MuonAdamW, orthogonalise
from rollouts.engine.base import Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine

CONFIG = tiny_model()
WEIGHTS = random_weights(CONFIG)
OPTIMIZER = OptimizerConfig(lr=1e-3, muon_lr=3e-3, weight_decay=0.1)
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def shared() -> Learner:
    return Learner(CONFIG, OPTIMIZER, seed=0)


@pytest.fixture
def learner(shared: Learner) -> Learner:
    """The module's learner, reset to the same weights with an empty optimiser for every test."""
    shared.load_weights(WEIGHTS)
    shared.optimizer.state.clear()
    return shared


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Streams of two turns, sampled by the engine, with its log-probs and routes."""

    async def sample() -> list[Row]:
        engine = EmbeddedEngine(CONFIG, pages=1024)
        await engine.update(Update(version=1, weights=WEIGHTS))
        return list(await asyncio.gather(*(_sampled_row(engine, i) for i in range(6))))

    return asyncio.run(sample())


async def _sampled_row(engine: EmbeddedEngine, number: int) -> Row:
    rng = Random(number)
    tokens: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    routes: list[np.ndarray] = []
    for _ in range(2):
        read = [rng.randrange(CONFIG.vocab_size) for _ in range(rng.randrange(5, 60))]
        sampling = Sampling(seed=number, temperature=TEMPERATURE, max_new_tokens=rng.randrange(5, 30))
        answer = await engine.generate(tokens + read, sampling, session=f"s{number}", deadline_s=30.0)
        tokens += read + answer.tokens
        mask += [False] * len(read) + [True] * len(answer.tokens)
        logprobs += [0.0] * len(read) + answer.logprobs
        assert answer.routes is not None
        routes.append(answer.routes)
    last = np.full((1, *routes[0].shape[1:]), -1, np.int16)
    shown = np.array(mask)
    return Row(
        key=(f"task {number % 3}", number, "0"),
        tokens=np.array(tokens, np.int32),
        mask=shown,
        logprobs=np.array(logprobs, np.float32),
        advantages=np.where(shown, np.float32(rng.uniform(-1, 1)), np.float32(0)),
        routes=np.concatenate([*routes, last]),
    )


def step(learner: Learner, rows: list[Row], micro_tokens: int = 4096, **changes) -> dict[str, float]:
    settings = {"denominator": denominator(rows), "temperature": TEMPERATURE, "micro_tokens": micro_tokens, **changes}
    return learner.policy_step(rows, K25(tau=0.1), **settings)


def gradient(learner: Learner, rows: list[Row], monkeypatch: pytest.MonkeyPatch, micro_tokens: int = 4096) -> Tensor:
    """The gradient before the optimiser's step, all parameters in one float64 vector."""
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


def test_the_engines_log_probs_are_the_learners(learner: Learner, rows: list[Row]):
    metrics = step(learner, rows)
    assert metrics["logprob_gap"] < 1e-4
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-5) and metrics["masked"] == 0.0
    assert 0 < metrics["entropy"] < math.log(CONFIG.vocab_size)


def other_experts(routes: np.ndarray | None) -> np.ndarray:
    assert routes is not None
    return np.where(routes >= 0, (routes + 1) % CONFIG.n_routed_experts, -1).astype(np.int16)


def test_a_wrong_route_is_seen_in_the_gap(learner: Learner, rows: list[Row]):
    wrong = [replace(row, routes=other_experts(row.routes)) for row in rows]
    assert step(learner, wrong)["logprob_gap"] > 1e-2


def test_the_gradient_is_the_objectives_own(learner: Learner, rows: list[Row], monkeypatch):
    """DeepSpeed neither scales nor clips the accumulated gradient."""
    got = gradient(learner, rows, monkeypatch)
    losses = []
    for row in rows:
        assert row.routes is not None
        mask = torch.from_numpy(row.mask)[None]
        tokens, routes = torch.from_numpy(row.tokens.astype(np.int64))[None], torch.from_numpy(row.routes)[None]
        logprobs, _ = learner.model(tokens, mask, routes, TEMPERATURE)
        old, advantages = (torch.from_numpy(values[row.mask]) for values in (row.logprobs, row.advantages))
        objective = K25(log_ratio_min=-0.5, log_ratio_max=0.5, tau=0.1)
        losses.append(objective.loss(logprobs, old, advantages, mask[mask], denominator=denominator(rows))[0])
    wanted = torch.autograd.grad(torch.stack(losses).sum(), list(learner.model.parameters()))
    assert distance(got, torch.cat([g.double().flatten() for g in wanted])) < 1e-5


@pytest.mark.parametrize("pieces", [2, 5])
def test_cutting_episodes_in_rows_leaves_the_gradient_unchanged(learner: Learner, rows, monkeypatch, pieces: int):
    cut = [piece for row in rows for piece in split_row(row, pieces)]
    assert len(cut) == pieces * len(rows) and denominator(cut) == denominator(rows)
    assert distance(gradient(learner, cut, monkeypatch), gradient(learner, rows, monkeypatch)) < 1e-6


def test_the_order_of_rows_and_the_micro_batch_leave_the_gradient_unchanged(learner: Learner, rows, monkeypatch):
    wanted = gradient(learner, rows, monkeypatch)
    assert distance(gradient(learner, rows[::-1], monkeypatch), wanted) < 1e-5
    for micro_tokens in (1, 150, 10_000):
        assert distance(gradient(learner, rows, monkeypatch, micro_tokens), wanted) < 1e-5


def test_what_was_read_after_the_last_trained_token_is_left_out_even_beyond_the_context(learner: Learner, rows):
    row = rows[0]
    extra = CONFIG.max_position_embeddings
    longer = Row(
        key=row.key,
        tokens=np.concatenate([row.tokens, np.zeros(extra, np.int32)]),
        mask=np.concatenate([row.mask, np.zeros(extra, bool)]),
        logprobs=np.concatenate([row.logprobs, np.zeros(extra, np.float32)]),
        advantages=np.concatenate([row.advantages, np.zeros(extra, np.float32)]),
        routes=np.concatenate([row.routes, np.full((extra, 2, 2), -1, np.int16)]),
    )
    assert step(learner, [longer])["logprob_gap"] < 1e-4


def test_rows_without_routes_are_refused(learner: Learner, rows: list[Row]):
    with pytest.raises(ValueError, match="no routes"):
        step(learner, [rows[0], replace(rows[1], routes=None)])


@pytest.mark.parametrize("micro_tokens", [1, 4096], ids=["in a later micro-batch", "in one batch"])
def test_a_nan_leaves_the_weights_untouched_and_the_next_step_clean(learner: Learner, rows, monkeypatch, micro_tokens):
    wanted = gradient(learner, rows, monkeypatch)
    shortest = min(rows, key=lambda row: len(row.tokens))
    broken = [replace(row, advantages=row.advantages * np.float32(np.nan)) if row is shortest else row for row in rows]
    with pytest.raises(NotFiniteLoss):
        step(learner, broken, micro_tokens)
    assert same_weights(learner.weights(), WEIGHTS)
    assert torch.equal(gradient(learner, rows, monkeypatch), wanted)


def same_weights(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_steps_raise_the_log_probs_of_what_paid(learner: Learner, rows: list[Row]):
    paid = [replace(row, advantages=np.where(row.mask, np.float32(1), np.float32(0))) for row in rows]
    first = step(learner, paid)
    for _ in range(4):
        last = step(learner, paid)
    assert last["loss"] < first["loss"] - 0.01
    assert first["grad_norm"] > 0


def test_a_saved_learner_continues_bit_for_bit(learner: Learner, rows: list[Row], tmp_path: Path):
    step(learner, rows)
    learner.save(tmp_path, "learner")
    saved = learner.weights()
    metrics = [step(learner, rows) for _ in range(2)]
    wanted = learner.weights()
    learner.load_weights(WEIGHTS)
    learner.optimizer.state.clear()
    learner.load(tmp_path, "learner")
    assert same_weights(learner.weights(), saved)
    assert [step(learner, rows) for _ in range(2)] == metrics
    assert same_weights(learner.weights(), wanted)


def test_a_missing_checkpoint_is_an_error(learner: Learner, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*step"):
        learner.load(tmp_path, "step")


def text(count: int, seed: int) -> TextRow:
    rng = np.random.default_rng(seed)
    weights = np.where(rng.random(count) < 0.5, 1.0, 0.1).astype(np.float32)
    return TextRow(tokens=rng.integers(0, 20, count).astype(np.int32), weights=weights)


def imitate(learner: Learner, texts: list[TextRow], lr_scale: float = 1.0, **settings) -> dict[str, float]:
    total = float(sum(row.weights.sum() for row in texts))
    return learner.text_step(texts, denominator=total, micro_tokens=100, lr_scale=lr_scale, **settings)


def test_imitation_learns_its_text_and_balances_the_experts(learner: Learner):
    texts = [text(40, seed) for seed in range(4)]
    before = learner.weights()["layers.1.mlp.gate.e_score_correction_bias"]
    steps = [imitate(learner, texts) for _ in range(12)]
    assert steps[-1]["loss"] < 0.9 * steps[0]["loss"]
    assert steps[0]["acted"] == sum(int((row.weights[1:] == 1).sum()) for row in texts)
    assert 0 <= steps[0]["right"] <= steps[0]["acted"]
    moved = learner.weights()["layers.1.mlp.gate.e_score_correction_bias"] - before
    assert 0 < np.abs(moved).max() < 0.02


def test_the_learning_rate_scale_of_a_step_applies_to_both_kinds(learner: Learner):
    imitate(learner, [text(30, 0)], lr_scale=0.0, balance=0.0)
    assert same_weights(learner.weights(), WEIGHTS)


def test_each_optimiser_has_its_own_learning_rate(learner: Learner):
    """Adam's first step moves an entry by the rate; Muon's by at most 0.2 x its rate in the mean."""
    imitate(learner, [text(30, 0)], lr_scale=0.5, balance=0.0)
    decay = 1 - np.float32(0.5 * OPTIMIZER.lr * OPTIMIZER.weight_decay)
    name = "embed_tokens.weight"
    moved = np.abs(learner.weights()[name] - WEIGHTS[name] * decay)
    assert np.median(moved[moved > 1e-5]) == pytest.approx(0.5 * OPTIMIZER.lr, rel=0.02)
    name = "layers.0.self_attn.o_proj.weight"
    decay = 1 - np.float32(0.5 * OPTIMIZER.muon_lr * OPTIMIZER.weight_decay)
    moved = learner.weights()[name] - WEIGHTS[name] * decay
    assert np.sqrt((moved**2).mean()) == pytest.approx(0.5 * OPTIMIZER.muon_lr * 0.2, rel=0.5)  # the rank is not full


METRICS = ("loss", "ratio", "masked", "kl", "entropy", "entropy_drift", "mismatch_kl", "logprob_gap")


def test_metrics_do_not_depend_on_the_micro_batch(learner: Learner, rows: list[Row]):
    longest = max(rows, key=lambda row: len(row.tokens))  # in the first micro-batch, where the gap is largest
    wrong = [
        replace(row, logprobs=row.logprobs - np.float32(0.3) * row.mask) if row is longest else row for row in rows
    ]
    found = []
    for micro_tokens in (4096, 60):
        learner.load_weights(WEIGHTS)
        learner.optimizer.state.clear()
        found.append({name: value for name, value in step(learner, wrong, micro_tokens).items() if name in METRICS})
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-6) and len(found[0]) == len(METRICS)
    assert found[0]["logprob_gap"] == pytest.approx(0.3, abs=0.01) and found[0]["ratio"] > 1.0


def test_scoring_rows_counts_no_load(learner: Learner, rows: list[Row]):
    for router in learner.model.routers():
        router.load_E.zero_()
    learner.logprobs(rows, temperature=1.0, micro_tokens=100)
    assert not any(router.load_E.any() for router in learner.model.routers()) and learner.model.training
    step(learner, rows)
    assert all(router.load_E.any() for router in learner.model.routers())


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_orthogonalising_keeps_the_singular_vectors_and_evens_the_values(shape: tuple[int, int]):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonalise(matrix) @ vt.T
    values = turned.diagonal()
    torch.testing.assert_close(turned, torch.diag(values), atol=1e-3, rtol=0)
    assert values.min() > 0.6 and values.max() < 1.3 and s.max() / s.min() > 2


def test_stacked_matrices_are_orthogonalised_one_by_one():
    stack = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2))
    alone = torch.stack([orthogonalise(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalise(stack), alone, atol=1e-5, rtol=1e-5)


def slow_muon(p: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float) -> np.ndarray:
    memory = np.zeros_like(p)
    for g in gradients:
        memory = 0.95 * memory + g
        x = g + 0.95 * memory
        x = (x.T if p.shape[0] > p.shape[1] else x) / np.linalg.norm(x)
        for _ in range(5):
            square = x @ x.T
            x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
        update = x.T if p.shape[0] > p.shape[1] else x
        p = p * (1 - lr * decay) - lr * 0.2 * math.sqrt(max(p.shape)) * update
    return p


def slow_adamw(p: np.ndarray, gradients: list[np.ndarray], lr: float, decay: float) -> np.ndarray:
    mean, square = np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(gradients, start=1):
        mean, square = 0.9 * mean + 0.1 * g, 0.95 * square + 0.05 * g * g
        unbiased = (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.95**t)) + 1e-8)
        p = p * (1 - lr * decay) - lr * unbiased
    return p


@pytest.mark.parametrize(("slow", "shape"), [(slow_muon, (4, 7)), (slow_muon, (7, 4)), (slow_adamw, (5, 3))])
def test_the_optimisers_steps_follow_a_slow_reference(slow: Callable[..., np.ndarray], shape: tuple[int, int]):
    rng = np.random.default_rng(0)
    start, gradients = rng.standard_normal(shape), [rng.standard_normal(shape) for _ in range(4)]
    parameter = torch.nn.Parameter(torch.tensor(start, dtype=torch.float32))
    chosen = ([parameter], []) if slow is slow_muon else ([], [parameter])
    optimizer = MuonAdamW(*chosen, muon_lr=0.02, lr=0.02, weight_decay=0.1)
    for g in gradients:
        parameter.grad = torch.tensor(g, dtype=torch.float32)
        optimizer.step()
    wanted = slow(start, gradients, 0.02, 0.1)
    np.testing.assert_allclose(parameter.detach().numpy(), wanted, atol=2e-5)


def two_steps(first: list[Tensor], then: list[Tensor], clip: float) -> tuple[list[Tensor], float]:
    """Parameters after two steps, and the norm that the first reported."""
    parameters = [torch.nn.Parameter(torch.ones_like(g)) for g in first]
    optimizer = MuonAdamW(parameters[:1], parameters[1:], muon_lr=0.1, lr=0.1, grad_clip=clip)
    norms = []
    for grads in (first, then):
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
        norms.append(optimizer.grad_norm)
    return [parameter.detach() for parameter in parameters], norms[0]


def test_a_gradient_is_scaled_to_the_largest_norm_allowed():
    generator = torch.Generator().manual_seed(0)
    large, small = ([scale * torch.randn(n, generator=generator) for n in ((3, 4), (5,))] for scale in (50.0, 0.1))
    norm = math.sqrt(sum(float(g.square().sum()) for g in large))
    clipped, reported = two_steps(large, small, clip=2.0)
    scaled, _ = two_steps([g * 2.0 / norm for g in large], small, clip=math.inf)
    free, _ = two_steps(large, small, clip=math.inf)
    assert reported == pytest.approx(norm)
    for i in range(2):  # the second step remembers how large the first gradient was
        torch.testing.assert_close(clipped[i], scaled[i], atol=1e-5, rtol=0)
        assert (clipped[i] - free[i]).abs().max() > 1e-3


def test_a_gradient_without_a_finite_norm_touches_no_weight():
    parameters = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3))]
    optimizer = MuonAdamW(parameters[:1], parameters[1:], muon_lr=0.1, lr=0.1)
    parameters[0].grad, parameters[1].grad = torch.full((2, 2), math.inf), torch.ones(3)
    with pytest.raises(NotFiniteLoss, match="norm is inf"):
        optimizer.step()
    assert all(bool((parameter == 1).all()) for parameter in parameters)


def test_a_gradient_is_clipped_to_the_configured_norm_and_to_no_other(rows: list[Row]):
    """DeepSpeed would clip to 1 first, and report the clipped norm."""
    large = [replace(row, advantages=row.advantages * np.float32(1000)) for row in rows]
    step = {"denominator": denominator(rows), "temperature": TEMPERATURE, "micro_tokens": 1000}
    learner = Learner(CONFIG, OptimizerConfig(grad_clip=5.0), seed=0)
    learner.load_weights(WEIGHTS)
    assert learner.policy_step(large, K25(tau=0.0), **step)["grad_norm"] > 5.0
    gradients = [p.grad for p in learner.model.parameters() if p.grad is not None]
    total = sum(float(gradient.double().square().sum()) for gradient in gradients) ** 0.5
    assert not gradients or total == pytest.approx(5.0, rel=1e-3)
