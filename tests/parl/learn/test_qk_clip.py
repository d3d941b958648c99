"""MuonClip: a head above τ is rescaled by the published factors, on one rank and two; off, nothing happens."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import random_policy, tiny_model

from model.decoder import export_weights
from parl.learn.config import OptimizerConfig
from parl.learn.learner import Learner, NotFiniteLoss
from parl.learn.objective.k25 import K25
from parl.learn.process import free_port
from parl.learn.qk_clip import QKClip
from parl.learn.rows import Row, denominator

CONFIG = tiny_model()
HEADS, NOPE, VALUE = CONFIG.num_attention_heads, CONFIG.qk_nope_head_dim, CONFIG.v_head_dim
QUERY, KEYS = "layers.0.self_attn.q_b_proj.weight", "layers.0.self_attn.kv_b_proj.weight"
TAU = 3.0


def peaked() -> dict[str, np.ndarray]:
    """A policy in whose first layer one head's logits are far above τ, and no other's."""
    model = random_policy(CONFIG)
    with torch.no_grad():
        for block in model.blocks():
            block.self_attn.q_b_proj.weight *= 0.1
        model.blocks()[0].self_attn.q_b_proj.weight[CONFIG.qk_head_dim :] *= 200.0  # head 1
    return export_weights(model)


WEIGHTS = peaked()


def some_rows(lengths: tuple[int, ...] = (40, 25, 12)) -> list[Row]:
    rows = []
    for number, length in enumerate(lengths):
        rng = np.random.default_rng(number)
        mask = rng.random(length) < 0.5
        mask[0], mask[-1] = False, True
        rows.append(
            Row(
                key=("t", number, "0"),
                tokens=rng.integers(0, CONFIG.vocab_size, length).astype(np.int32),
                mask=mask,
                logprobs=np.where(mask, -6.0, 0.0).astype(np.float32),
                advantages=np.where(mask, np.float32(rng.uniform(-1, 1)), np.float32(0)),
                routes=np.full((length, 2, 2), -1, np.int16),
            )
        )
    return rows


def learner(tau: float | None, **ranks: int) -> Learner:
    out = Learner(CONFIG, OptimizerConfig(qk_clip=tau), seed=0, **ranks)
    out.load_weights(WEIGHTS)
    return out


def step(learner: Learner, rows: list[Row], n: float | None = None, lr_scale: float = 0.0) -> dict[str, float]:
    settings = {"temperature": 1.0, "micro_tokens": 60, "lr_scale": lr_scale}
    return learner.policy_step(rows, K25(), denominator=n or denominator(rows), **settings)


def test_a_head_above_tau_is_clipped_to_the_published_factors_and_reaches_tau():
    clipping = learner(TAU)
    first = step(clipping, some_rows())
    assert first["max_logit"] > 2 * TAU
    assert first["clipped_heads"] == pytest.approx(1 / (HEADS * CONFIG.num_hidden_layers))
    gamma, after = TAU / first["max_logit"], clipping.weights()
    factors = {name: np.ones_like(array) for name, array in WEIGHTS.items()}
    start, width = CONFIG.qk_head_dim, NOPE + VALUE
    factors[QUERY][start : start + NOPE], factors[QUERY][start + NOPE :] = gamma**0.5, gamma
    factors[KEYS][width : width + NOPE] = gamma**0.5
    for name, array in WEIGHTS.items():
        np.testing.assert_allclose(after[name], array * factors[name], rtol=1e-6, err_msg=name)
        assert np.array_equal(after[name][factors[name] == 1], array[factors[name] == 1]), name
    second = step(clipping, some_rows())  # the same rows, seen by the weights after the step
    assert second["max_logit"] == pytest.approx(TAU, rel=1e-5)


def test_the_factors_are_those_of_the_step_even_when_the_step_moves_the_weights():
    plain, clipping = learner(None), learner(TAU)
    seen = step(clipping, some_rows(), lr_scale=1.0)
    step(plain, some_rows(), lr_scale=1.0)
    gamma = TAU / seen["max_logit"]
    moved, clipped = plain.weights(), clipping.weights()
    start = CONFIG.qk_head_dim
    np.testing.assert_allclose(clipped[QUERY][start + NOPE :], gamma * moved[QUERY][start + NOPE :], rtol=1e-6)
    assert np.array_equal(clipped[QUERY][:start], moved[QUERY][:start])
    memories = [[s["momentum"] for s in x.optimizer.state.values() if "momentum" in s] for x in (plain, clipping)]
    assert memories[0] and all(torch.equal(a, b) for a, b in zip(*memories, strict=True))  # it is not touched


def test_below_tau_and_without_it_not_a_bit_changes():
    off, high = learner(None), learner(1e4)
    without, within = step(off, some_rows(), lr_scale=1.0), step(high, some_rows(), lr_scale=1.0)
    assert "max_logit" not in without and within["clipped_heads"] == 0.0
    assert all(np.array_equal(array, off.weights()[name]) for name, array in high.weights().items())
    assert not off.model.collect_logits


def test_scoring_rows_and_a_refused_step_leave_no_logits_behind():
    clipping, rows = learner(TAU), some_rows()
    clipping.logprobs(rows, temperature=1.0, micro_tokens=60)
    assert all(block.self_attn.max_logit_H is None for block in clipping.model.blocks())
    rows[2].advantages = rows[2].advantages * np.float32(np.nan)
    with pytest.raises(NotFiniteLoss):
        step(clipping, rows)
    assert all(block.self_attn.max_logit_H is None for block in clipping.model.blocks())


def test_a_model_that_saw_nothing_is_left_alone():
    model = random_policy(CONFIG)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    assert QKClip(model, TAU).clip()["clipped_heads"] == 0.0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def one_of_two(rank: int, port: int, shares: list[list[Row]], n: float, folder: Path) -> None:
    """A rank: for each of its ``shares`` a step from the start; metrics and weights go to ``folder``."""
    torch.set_num_threads(1)
    own = learner(TAU, rank=rank, ranks=2, port=port)
    for case, share in enumerate(shares):
        own.load_weights(WEIGHTS)
        own.optimizer.state.clear()
        metrics = step(own, share, n, lr_scale=0.5)
        seen = {"max_logit": metrics["max_logit"], "heads": metrics["clipped_heads"]}
        np.savez(folder / f"{case}-{rank}.npz", **seen, **own.weights())


@pytest.mark.slow
def test_two_ranks_clip_as_one_does_also_if_one_has_no_rows(tmp_path: Path):
    rows = some_rows()
    watching = learner(1e9)  # clips nothing, so it may look at one row after the other
    largest = int(np.argmax([step(watching, [row])["max_logit"] for row in rows]))
    rest = [row for i, row in enumerate(rows) if i != largest]
    shares = [[rest, []], [[rows[largest]], rows]]  # of either rank: rows on both, then all on the second
    spawn, port, n = multiprocessing.get_context("spawn"), free_port(), float(denominator(rows))
    ranks = [spawn.Process(target=one_of_two, args=(r, port, shares[r], n, tmp_path)) for r in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=240)
        assert process.exitcode == 0
    single = learner(TAU)
    wanted = step(single, rows, lr_scale=0.5)
    for case in range(2):
        found = [dict(np.load(tmp_path / f"{case}-{rank}.npz")) for rank in range(2)]
        for rank in found:
            assert rank.pop("max_logit") == pytest.approx(wanted["max_logit"], rel=1e-6)
            assert rank.pop("heads") == pytest.approx(wanted["clipped_heads"]) and wanted["clipped_heads"] > 0
        for name, array in single.weights().items():
            assert np.array_equal(found[0][name], found[1][name]), name
            np.testing.assert_allclose(found[0][name], array, rtol=1e-5, atol=2e-6, err_msg=name)
