"""Policies of transformers, with a head of their own or a tied one, over one rank and two, at every ZeRO stage."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parallel_ranks import both

from model.arrays import BFLOAT16, to_tensor
from model.decoder import Weights, export_weights
from parl.learn.config import LoraConfig, OptimizerConfig, ParallelConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.rows import Row, denominator
from parl.learn.shard import ds_engine

pytest.importorskip("transformers")
from model.hf.family import Hf
from model.hf.shape import HfShape

LLAMA = {
    "model_type": "llama",
    "vocab_size": 199,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
OPTIMIZER = OptimizerConfig(lr=1e-3, muon_lr=3e-3)
WIDE = K25(log_ratio_min=-30, log_ratio_max=30, tau=0.0)
STEPS = 3
CASES = [(tied, dtype, zero) for tied in (True, False) for dtype in ("float32", "bfloat16") for zero in (0, 1, 2, 3)]
DEADLINE_S = 600.0
each_case = pytest.mark.parametrize(("tied", "dtype", "zero"), CASES)


def a_shape(tied: bool, dtype: str) -> HfShape:
    return HfShape(transformers=LLAMA | {"tie_word_embeddings": tied}, dtype=dtype)  # type: ignore[call-arg]


def start(shape: HfShape) -> Weights:
    torch.manual_seed(3)
    return export_weights(Hf().policy(shape))


def a_row(number: int, length: int) -> Row:
    rng = np.random.default_rng(number)
    mask = rng.random(length) < 0.5
    mask[0], mask[-1] = False, True
    return Row(
        key=("t", number, "0"),
        tokens=rng.integers(0, 199, length).astype(np.int32),
        mask=mask,
        logprobs=np.where(mask, -5.3, 0).astype(np.float32),
        advantages=np.where(mask, rng.uniform(-1, 1), 0).astype(np.float32),
    )


ROWS = [a_row(number, length) for number, length in enumerate((90, 60, 40, 70))]


def steps(learner: Learner, rows: list[Row]) -> list[dict[str, float]]:
    settings: dict[str, Any] = {"denominator": denominator(ROWS), "temperature": 1.0, "micro_tokens": 100}
    return [learner.policy_step(rows, WIDE, **settings) for _ in range(STEPS)]


def run(rank: int, port: int, folder: Path) -> None:
    """One of two processes: every case in turn, results in files; ``folder``/``rank``.error says what went wrong."""
    torch.set_num_threads(1)
    ds_engine.PERSISTENT = 0  # of so small a model ZeRO 3 would keep everything whole
    try:
        for case in CASES:
            shape, parallel = a_shape(*case[:2]), ParallelConfig(zero=case[2])
            learner = Learner(shape, OPTIMIZER, seed=0, rank=rank, ranks=2, port=port, parallel=parallel)
            learner.load_weights(start(shape))
            found = steps(learner, ROWS[rank::2])
            weights = learner.weights()
            learner.save(folder, f"{case}-saved")
            steps(learner, ROWS[rank::2])
            learner.load(folder, f"{case}-saved")
            again = learner.weights()
            if rank == 0:
                torch.save((found, {n: to_tensor(a) for n, a in weights.items()}), folder / f"{case}.pt")
                assert all(np.array_equal(again[name], array) for name, array in weights.items())
            learner.engine.destroy()
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    both(run, folder, deadline_s=DEADLINE_S)
    return folder


def single(tied: bool, dtype: str, zero: int, optimizer: OptimizerConfig = OPTIMIZER) -> Learner:
    shape = a_shape(tied, dtype)
    learner = Learner(shape, optimizer, seed=0, parallel=ParallelConfig(zero=zero))  # type: ignore[arg-type]
    learner.load_weights(start(shape))
    return learner


def check(found: list[dict[str, float]], weights: dict[str, torch.Tensor], tied: bool, dtype: str) -> None:
    """Against one process in float32 without ZeRO, of the same first weights."""
    learner = Learner(a_shape(tied, "float32"), OPTIMIZER, seed=0)
    learner.load_weights({n: a.astype(np.float32) for n, a in start(a_shape(tied, dtype)).items()})
    wanted, close = steps(learner, ROWS), {"float32": 1e-4, "bfloat16": 2e-2}[dtype]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=close)
    state = learner.model.state_dict()
    assert weights.keys() == state.keys() and ("lm_head.weight" in weights) is not tied
    for name, tensor in weights.items():
        assert tensor.dtype == getattr(torch, dtype) and tensor.shape == state[name].shape
        gap = float((tensor.float() - state[name]).norm() / state[name].norm())
        assert gap < close, name


@each_case
def test_one_rank_trains_as_it_does_without_zero(tied: bool, dtype: str, zero: int, monkeypatch):
    monkeypatch.setattr(ds_engine, "PERSISTENT", 0)
    learner = single(tied, dtype, zero)
    found = steps(learner, ROWS)
    check(found, {name: to_tensor(array) for name, array in learner.weights().items()}, tied, dtype)
    learner.set_reference(learner.weights())
    settings: dict[str, Any] = {"temperature": 1.0, "micro_tokens": 100}
    pairs = zip(learner.logprobs(ROWS, **settings), learner.logprobs(ROWS, **settings, reference=True), strict=True)
    assert all(np.abs(one - other).max() < (1e-5 if dtype == "float32" else 1e-6) for one, other in pairs)


@pytest.mark.slow
@each_case
def test_two_ranks_train_as_one_does(files: Path, tied: bool, dtype: str, zero: int):
    found, weights = torch.load(files / f"{(tied, dtype, zero)}.pt")
    check(found, weights, tied, dtype)


def test_adapters_stay_float32_over_a_policy_in_bfloat16():
    adapted = single(True, "bfloat16", 0, OptimizerConfig(lr=1e-2, lora=LoraConfig(rank=4, targets=("attention",))))
    lora, model = adapted.model.lora, adapted.model
    assert lora is not None and {p.dtype for p in lora.parameters()} == {torch.float32}
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert {p.dtype for p in frozen.values()} == {torch.bfloat16}
    first, *_, last = (metrics["loss"] for _ in range(2) for metrics in steps(adapted, ROWS))
    assert last < first
    assert all(torch.equal(model.get_parameter(name), value) for name, value in frozen.items())
    assert {array.dtype for array in adapted.weights().values()} == {np.dtype(np.float32)}
    assert export_weights(model)["model.norm.weight"].dtype == BFLOAT16
