"""Unsupported layouts of ranks are refused before anything starts, with the fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import SHAPE, tiny_config

from parl.config.load import load_config
from parl.config.schema import Config
from parl.errors import ConfigError


def config(ranks: int, parallel: dict[str, Any], **model: Any) -> Config:
    trainer: dict[str, Any] = {"ranks": ranks, "parallel": parallel}
    return tiny_config(Path("runs"), trainer=trainer, model=SHAPE | model)


@pytest.mark.parametrize(
    ("ranks", "parallel", "model", "message"),
    [
        (2, {"expert_parallel": 3}, {}, "expert_parallel=3 must divide trainer.ranks=2"),
        (3, {"expert_parallel": 3}, {}, "expert_parallel=3 must divide the model's 4 routed experts"),
        (2, {"expert_parallel": 2}, {"first_k_dense_replace": 3}, "the model's 0 routed experts: set it to 1"),
        (2, {"offload": "nvme", "zero": 3}, {}, "offload"),
        (2, {"offload": "cpu"}, {}, "offload=cpu needs trainer.parallel.zero of 1 or more"),
        (2, {"zero": 4}, {}, "zero"),
    ],
)
def test_what_does_not_compose_is_refused_by_name(ranks: int, parallel: dict, model: dict, message: str):
    with pytest.raises(ValueError, match=message):
        config(ranks, parallel, **model)


def test_a_policy_that_sees_is_not_shared_yet():
    vision = load_config(Path("configs/vision.yaml"))
    tree = vision.model_dump(mode="python")
    tree["trainer"]["parallel"]["zero"] = 2
    with pytest.raises(ValueError, match=r"zero=2, expert_parallel=1 with model\.vision: .* use zero=0"):
        Config.model_validate(tree)


def test_adapters_are_not_shared_yet():
    settings = {"trainer": {"ranks": 2, "parallel": {"zero": 1}}, "optimizer": {"lora": {}}}
    with pytest.raises(ValueError, match=r"zero=1, expert_parallel=1 with optimizer\.lora: .* or lora=null"):
        tiny_config(Path("runs"), **settings)
    recomputed = {"trainer": {"ranks": 2, "parallel": {"recompute": True}}, "optimizer": {"lora": {}}}
    assert tiny_config(Path("runs"), **recomputed).trainer.parallel.recompute


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("degree", [1, 2, 4])
def test_what_composes_is_taken(zero: int, degree: int):
    parallel = {"zero": zero, "expert_parallel": degree, "recompute": True, "offload": "cpu" if zero else "none"}
    taken = config(4, parallel).trainer.parallel
    assert (taken.zero, taken.expert_parallel) == (zero, degree)


def test_the_default_shares_nothing():
    parallel = load_config(Path("configs/quickstart.yaml")).trainer.parallel
    assert (parallel.zero, parallel.expert_parallel) == (0, 1)
    assert (parallel.offload, parallel.recompute) == ("none", False)


def test_a_run_from_when_there_was_a_key_for_split_sequences_is_read(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("trainer: {ranks: 2, parallel: {zero: 1, sequence_parallel: 1}}\n")
    assert load_config(path).trainer.parallel.zero == 1
    path.write_text("trainer: {parallel: {sequence_parallel: 2}}\n")
    with pytest.raises(ConfigError, match=r"trainer\.parallel\.sequence_parallel"):
        load_config(path)
