"""Checkpoints and weights of ranks that do not see the run's folder: fetched from them, and sent to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.torch import save_file
from tiny import random_weights, tiny_model

from model.arrays import to_tensor
from model.policy_read import SINGLE
from parl.learn.config import OptimizerConfig
from parl.learn.group import LearnerGroup
from parl.machine.nodes import files

CONFIG = tiny_model()


@pytest.fixture(scope="module")
def group(one_ray) -> Iterator[LearnerGroup]:
    settings = {"seed": 0, "ranks": 2, "threads": 1, "micro_tokens": 512, "deadline_s": 600.0}
    made = LearnerGroup(CONFIG, OptimizerConfig(), **settings)
    made.load_weights(random_weights(CONFIG, seed=3))
    yield made
    made.close()


def all_blind(ranks, folder) -> list[bool]:
    return [True] * len(ranks)


def test_parts_fetched_from_other_nodes_are_those_that_ranks_write_themselves(group, tmp_path: Path, monkeypatch):
    group.save(tmp_path, "seen")
    monkeypatch.setattr("parl.learn.group.blind", all_blind)
    monkeypatch.setattr(files, "_PIECE", 1000)  # in the driver: the ranks answer with pieces of their own size
    (tmp_path / "apart").mkdir()
    group.snapshot()
    parts = group.write_snapshot(tmp_path / "apart")
    assert [part.file for part in parts] == ["part-00000.safetensors", "part-00001.safetensors"]
    for part in parts:
        written = (tmp_path / "apart" / part.file).read_bytes()
        assert written == (tmp_path / "seen" / part.file).read_bytes() and len(written) == part.bytes


def test_ranks_load_parts_that_they_are_sent(group, tmp_path: Path, monkeypatch):
    group.save(tmp_path, "first")
    before = group.weights()
    group.load_weights(random_weights(CONFIG, seed=4))
    monkeypatch.setattr("parl.learn.group.blind", all_blind)
    monkeypatch.setattr(files, "_PIECE", 1000)
    group.load(tmp_path, "first")
    after = group.weights()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(Exception, match="no checkpoint"):
        group.load(tmp_path, "nothing")


def test_on_one_machine_every_rank_sees_the_folder_without_being_asked(group, tmp_path: Path):
    assert files.blind(group._ranks, tmp_path) == [False, False]
    assert list(tmp_path.iterdir()) == []


def test_whether_a_rank_sees_a_folder_is_found_with_a_file_in_it(group, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "several", lambda: True)
    assert files.blind(group._ranks, tmp_path) == [False, False]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("apart", [[False, False], [True, True], [False, True]])
def test_ranks_read_a_policys_folder_that_they_see_and_are_sent_the_weights_otherwise(
    group, tmp_path: Path, monkeypatch, apart: list[bool]
):
    """The folder holds other weights than those that are sent, so that it shows who read what."""
    read, sent = random_weights(CONFIG, seed=5), random_weights(CONFIG, seed=6)
    (tmp_path / "config.json").write_text(CONFIG.model_dump_json())
    save_file({name: to_tensor(array).contiguous() for name, array in read.items()}, tmp_path / SINGLE)
    monkeypatch.setattr("parl.learn.group.blind", lambda ranks, folder: apart)
    group.load_weights(sent, tmp_path)
    for rank, far in enumerate(apart):
        found: Any = ray.get(group._ranks[rank].weights.remote())
        assert all(np.array_equal(found[name], (sent if far else read)[name]) for name in read)
    (tmp_path / SINGLE).unlink()
    group.load_weights(sent, tmp_path)  # no policy's folder: all are sent
    assert all(np.array_equal(array, sent[name]) for name, array in group.weights().items())
