"""Learners that read a policy's folder have the bits of those that are given arrays, under every layout; no rank holds
the whole policy where ranks share it."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parallel_ranks import both
from safetensors.torch import save_file
from tiny import random_policy, tiny_model
from torch import Tensor

from model.arrays import to_tensor
from model.decoder import Weights, export_weights
from model.family import Shape, family_of
from model.policy_read import SINGLE, is_plain
from parl.learn.config import LoraConfig, OptimizerConfig, ParallelConfig
from parl.learn.learner import Learner
from parl.learn.objective.k25 import K25
from parl.learn.rows import Row
from parl.learn.shard import ds_engine

pytest.importorskip("transformers")
from model.hf.shape import HfShape

MOE = {
    "model_type": "qwen3_moe", "vocab_size": 150, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True,
}  # fmt: skip
LLAMA = {
    "model_type": "llama", "vocab_size": 151, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: dict[str, Shape] = {
    "kimi": tiny_model(),
    "llama": HfShape(transformers=LLAMA),  # type: ignore[call-arg]
    "llama-short": HfShape(transformers=LLAMA, dtype="bfloat16"),  # type: ignore[call-arg]
    "moe-short": HfShape(transformers=MOE, dtype="bfloat16"),  # type: ignore[call-arg]
}
PLAIN = [(name, ParallelConfig(zero=zero)) for name in SHAPES for zero in (0, 2, 3)]
SPLIT = [(name, ParallelConfig(zero=zero, expert_parallel=2)) for name in ("kimi", "moe-short") for zero in (0, 2, 3)]
OPTIMIZER = OptimizerConfig(lr=1e-3, muon_lr=3e-3)
DEADLINE_S = 600.0


def named(case: tuple[str, ParallelConfig]) -> str:
    return f"{case[0]}, ZeRO {case[1].zero}, experts over {case[1].expert_parallel}"


def stored(folder: Path, shape: Shape) -> Weights:
    """Drawn weights, also in ``folder`` as a run writes them."""
    torch.manual_seed(3)
    policy = random_policy(shape) if family_of(shape).Shape is type(tiny_model()) else family_of(shape).policy(shape)  # type: ignore[arg-type]
    weights = export_weights(policy)
    folder.mkdir()
    (folder / "config.json").write_text(shape.model_dump_json())
    save_file({name: to_tensor(array).contiguous() for name, array in weights.items()}, folder / SINGLE)
    return weights


def learner_of(case: tuple[str, ParallelConfig], weights: Weights | Path, **given: Any) -> Learner:
    """From a folder it begins without values, from arrays as learners always did: drawn, then filled."""
    settings = {"optimizer": OPTIMIZER, "seed": 0, "parallel": case[1], "drawn": not isinstance(weights, Path)}
    learner = Learner(SHAPES[case[0]], **{**settings, **given})  # type: ignore[arg-type]
    learner.load_weights(weights)
    return learner


def rows(shape: Shape, count: int) -> list[Row]:
    found = []
    for number in range(count):
        draw = np.random.default_rng(number)
        mask = np.arange(24) % 3 == 2
        routes = shape.routes
        found.append(
            Row(
                key=("t", number, "0"), tokens=draw.integers(0, shape.vocab_size, 24).astype(np.int32), mask=mask,
                logprobs=np.where(mask, -5.0, 0).astype(np.float32),
                advantages=np.where(mask, draw.uniform(-1, 1), 0).astype(np.float32),
                routes=np.tile(np.arange(routes.chosen, dtype=np.int16), (24, routes.layers, 1)) if routes else None,
            )
        )  # fmt: skip
    return found


def state(learner: Learner, own: list[Row]) -> dict[str, Tensor]:
    """This rank's part of the state and the buffers, then after a step, and log-probs of a reference beside it."""
    shards = learner._shards

    def parts(name: str) -> dict[str, Tensor]:
        flats = {f"{name} {i}": flat.tensor.detach().clone() for i, flat in enumerate(shards._flats)}
        return flats | {f"{name} {key}": value.clone() for key, value in shards._buffers().items()}

    found = parts("loaded")
    wide = K25(log_ratio_min=-30, log_ratio_max=30, tau=0.0)
    learner.policy_step(own, wide, denominator=16.0, temperature=1.0, micro_tokens=64)
    return found | parts("after a step")


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])]


@pytest.mark.parametrize("case", PLAIN, ids=named)
def test_one_rank_reads_a_folder_to_the_bits_of_given_arrays(case: tuple[str, ParallelConfig], tmp_path: Path):
    weights = stored(tmp_path / "policy", SHAPES[case[0]])
    found = []
    for source in (weights, tmp_path / "policy"):
        learner = learner_of(case, source)
        found.append(state(learner, rows(SHAPES[case[0]], 2)))
        learner.engine.destroy()
    assert not differing(*found)


def test_adapters_stay_as_drawn_over_weights_read_from_a_folder(tmp_path: Path):
    case = ("llama-short", ParallelConfig())
    weights = stored(tmp_path / "policy", SHAPES[case[0]])
    found = []
    for source in (weights, tmp_path / "policy"):
        learner = learner_of(case, source, optimizer=OptimizerConfig(lora=LoraConfig(rank=2)), drawn=False)
        state(learner, rows(SHAPES[case[0]], 2))  # adapters are trained
        learner.load_weights(source)
        found.append({name: value.clone() for name, value in learner.model.state_dict().items()})
    assert not differing(*found)


@pytest.mark.parametrize("zero", [0, 3])
def test_a_folder_of_another_model_is_refused(zero: int, tmp_path: Path):
    stored(tmp_path / "policy", SHAPES["llama"])
    with pytest.raises(ValueError, match=r"another model's|not the weights of this model"):
        learner_of(("kimi", ParallelConfig(zero=zero)), tmp_path / "policy")  # type: ignore[arg-type]


def test_published_folders_are_not_read_by_ranks(tmp_path: Path):
    stored(tmp_path / "policy", SHAPES["llama"])
    assert is_plain(tmp_path / "policy")
    (tmp_path / "policy" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert not is_plain(tmp_path / "policy") and not is_plain(tmp_path)


@pytest.mark.parametrize("name", ["kimi", "llama-short", "moe-short"])
def test_zero_3_makes_one_parameter_after_the_other(name: str, monkeypatch: pytest.MonkeyPatch):
    """When one gets memory, those before it are cut, and those after it have none."""
    shape = SHAPES[name]
    family, policies, whole = type(family_of(shape)), [], []
    outline, swap = family.outline, torch.utils.swap_tensors

    def kept(self: Any, given: Shape) -> Any:
        policies.append(outline(self, given))
        return policies[-1]

    def watched(parameter: Tensor, made: Tensor) -> None:
        whole.append(sum(p.numel() for p in policies[-1].parameters() if not p.is_meta))
        swap(parameter, made)

    monkeypatch.setattr(ds_engine, "PERSISTENT", 0)
    monkeypatch.setattr(family, "outline", kept)
    monkeypatch.setattr(torch.utils, "swap_tensors", watched)
    learner = Learner(shape, OPTIMIZER, seed=0, parallel=ParallelConfig(zero=3), drawn=False)
    assert whole == [0] * len(list(learner.model.parameters()))
    assert all(parameter.numel() == 0 for parameter in learner.model.parameters())
    learner.engine.destroy()


# ---------------------------------------------------------------- two ranks


def run(rank: int, port: int, folder: Path) -> None:
    """One of two processes; ``folder``/``rank``.error says what went wrong."""
    torch.set_num_threads(1)
    ds_engine.PERSISTENT = 0  # of so small a model ZeRO 3 would keep everything whole
    try:
        given = {
            name: (stored(folder / f"{name}-{rank}", shape), folder / f"{name}-{rank}")
            for name, shape in SHAPES.items()
        }
        for case in (*PLAIN, *SPLIT):
            own, found = rows(SHAPES[case[0]], 2)[rank : rank + 1], []
            for source in given[case[0]]:
                learner = learner_of(case, source, rank=rank, ranks=2, port=port)
                values = state(learner, own)
                if SHAPES[case[0]].weights_dtype == "float32" or case[1].zero < 3:
                    learner.set_reference(source)
                    said = learner.logprobs(own, temperature=1.0, micro_tokens=64, reference=True)
                    values["reference"] = torch.from_numpy(said[0])
                found.append(values)
                learner.engine.destroy()
            assert not (wrong := differing(*found)), f"{named(case)}: {wrong}"
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        raise


@pytest.mark.slow
def test_two_ranks_read_their_shares_to_the_bits_of_given_arrays(tmp_path: Path):
    """Under every layout, with a reference policy beside."""
    both(run, tmp_path, deadline_s=DEADLINE_S)
