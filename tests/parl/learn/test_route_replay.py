"""Router replay: equal log-probs however the engine's weights are rounded, refusals and metrics."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import random_policy, tiny_model

from model.decoder import Weights, export_weights
from model.kimi.config import ModelConfig
from parl.learn.config import OptimizerConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.route_replay import check_routes
from parl.learn.rows import Row, denominator
from rollouts.engine.base import Sampling, Update
from rollouts.engine.embedded.engine import EmbeddedEngine

CONFIG = tiny_model(vocab_size=120, n_routed_experts=8, moe_intermediate_size=32)
STEP = {"temperature": 1.0, "micro_tokens": 500}


def near_ties(config: ModelConfig) -> Weights:
    """A policy whose routers hardly prefer any expert, so that rounding decides."""
    model = random_policy(config)
    with torch.no_grad():
        for router in model.routers():
            router.weight.mul_(1e-2)
            router.e_score_correction_bias.zero_()
    return export_weights(model)


def rounded(weights: Weights) -> Weights:
    """Weights rounded to bfloat16."""
    return {name: torch.from_numpy(array).bfloat16().float().numpy() for name, array in weights.items()}


def sampled(config: ModelConfig, weights: Weights, count: int = 6) -> list[Row]:
    """Streams written by the engine, with its log-probs and routes."""

    async def one(engine: EmbeddedEngine, number: int) -> Row:
        prompt = np.random.default_rng(number).integers(0, config.vocab_size, 30).tolist()
        answer = await engine.generate(
            prompt, Sampling(seed=number, max_new_tokens=60), session=str(number), deadline_s=60.0
        )
        assert answer.routes is not None
        mask = np.array([False] * len(prompt) + [True] * len(answer.tokens))
        return Row(
            key=("t", number, "0"),
            tokens=np.array(prompt + answer.tokens, np.int32),
            mask=mask,
            logprobs=np.array([0.0] * len(prompt) + answer.logprobs, np.float32),
            advantages=mask.astype(np.float32),
            routes=np.concatenate([answer.routes, np.full((1, *answer.routes.shape[1:]), -1, np.int16)]),
        )

    async def all_of_them() -> list[Row]:
        engine = EmbeddedEngine(config, pages=512)
        await engine.update(Update(version=1, weights=weights))
        return list(await asyncio.gather(*(one(engine, number) for number in range(count))))

    return asyncio.run(all_of_them())


def live(rows: list[Row]) -> list[Row]:
    """``rows`` for which the learner chooses experts itself."""
    return [replace(row, routes=np.full_like(row.routes, -1)) for row in rows]


def largest_gap(learner: Learner, rows: list[Row]) -> float:
    found = learner.logprobs(rows, **STEP)
    return max(float(np.abs(own - row.logprobs).max()) for own, row in zip(found, rows, strict=True))


@pytest.mark.parametrize("kept_as", ["float32", "bfloat16", "int4"])
def test_with_replay_the_learner_has_the_log_probs_of_an_engine_whose_weights_are_rounded(kept_as: str):
    config = CONFIG.model_copy(update={"quantize_experts": "int4"}) if kept_as == "int4" else CONFIG
    weights = near_ties(config)
    weights = rounded(weights) if kept_as == "bfloat16" else weights
    rows = sampled(config, weights)
    learner = Learner(config, OptimizerConfig(), seed=0)
    learner.load_weights(weights)
    assert largest_gap(learner, rows) < 1e-4
    metrics = learner.policy_step(rows, K25(), denominator=denominator(rows), **STEP)
    assert metrics["mismatch_kl"] < 1e-8
    if kept_as == "float32":
        return
    unrounded = Learner(CONFIG, OptimizerConfig(), seed=0)  # it computes with other values than the engine, so it
    unrounded.load_weights(near_ties(config))  # would choose other experts: replay keeps at least those
    assert largest_gap(unrounded, live(rows)) > 1.5 * largest_gap(unrounded, rows)
    metrics = unrounded.policy_step(rows, K25(), denominator=denominator(rows), **STEP)
    assert metrics["route_overlap_min"] <= metrics["route_overlap"] < 0.999


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner(CONFIG, OptimizerConfig(), seed=0)


def test_the_overlap_counts_the_experts_in_common_layer_by_layer(learner: Learner):
    weights = export_weights(random_policy(CONFIG))
    learner.load_weights(weights)
    rows = sampled(CONFIG, weights, count=2)

    def step(changed: list[Row]) -> dict[str, float]:
        learner.load_weights(weights)
        return learner.policy_step(changed, K25(), denominator=denominator(changed), **STEP)

    metrics = step(rows)
    assert metrics["route_overlap"] == metrics["route_overlap_min"] == 1.0
    turned = []  # in the last layer, which no later router sees, one expert of two becomes another
    for row in rows:
        assert row.routes is not None
        routes = row.routes.copy()
        for token in np.flatnonzero(routes[:, -1, 0] >= 0):
            routes[token, -1, 0] = next(e for e in range(8) if e not in routes[token, -1])
        turned.append(replace(row, routes=routes))
    metrics = step(turned)
    assert metrics["route_overlap_min"] == pytest.approx(0.5) and metrics["route_overlap"] == pytest.approx(0.75)
    assert metrics["mismatch_kl"] > 1e-4


def test_watching_counts_no_load_and_leaves_no_hook(learner: Learner):
    learner.load_weights(near_ties(CONFIG))
    rows = sampled(CONFIG, near_ties(CONFIG), count=2)
    for router in learner.model.routers():
        router.load_E.zero_()
    learner.policy_step(rows, K25(), denominator=denominator(rows), **STEP)
    tokens = sum(int(np.flatnonzero(row.mask).max()) + 1 for row in rows)
    for router in learner.model.routers():
        assert float(router.load_E.sum()) == tokens * CONFIG.num_experts_per_tok
        assert not router._forward_pre_hooks and router.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda routes: None, "has no routes"),
        (lambda routes: routes[:, :1], r"routes of shape \[91, 1, 2\], this policy's are \[91, 2, 2\]|routes of shape"),
        (lambda routes: routes + 8, "experts are 0 to 7"),
        (lambda routes: np.where(routes == routes.max(), 8, routes), "to 8, experts are 0 to 7"),
        (lambda routes: np.where(routes == routes.max(), -2, routes), "routes from -2 to"),
        (lambda routes: routes * 0, "name an expert twice"),
    ],
    ids=["none", "a layer short", "unknown experts", "one expert too many", "less than none", "zeros"],
)
def test_routes_that_the_policy_cannot_have_chosen_are_refused(change, message: str):
    (row,) = sampled(CONFIG, near_ties(CONFIG), count=1)
    check_routes([row], CONFIG)
    with pytest.raises(ValueError, match=message):
        check_routes([replace(row, routes=change(row.routes))], CONFIG)
    dense = CONFIG.model_copy(update={"first_k_dense_replace": CONFIG.num_hidden_layers})
    check_routes([replace(row, routes=None)], dense)
