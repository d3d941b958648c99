"""A policy on disk: unchanged by a round trip, and bad folders are reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny import random_weights, tiny_model

from model.kimi.family import Kimi
from model.policy_files import load_policy, save_policy
from model.tokenizer.tokenizer import Tokenizer


def test_a_policy_comes_back_as_it_was_saved(tokenizer: Tokenizer, tmp_path: Path):
    weights = random_weights(tiny_model())
    save_policy(tmp_path, tiny_model(), weights, tokenizer, {"step": 3})
    again, config, same, meta = load_policy(tmp_path, Kimi())
    assert (config, meta) == (tiny_model(), {"step": 3})
    assert again.keys() == weights.keys()
    assert all(np.array_equal(array, weights[name]) for name, array in again.items())
    assert same.encode("Find the mass of it.") == tokenizer.encode("Find the mass of it.")
    assert not list(tmp_path.glob("*.tmp"))


def test_half_precision_halves_the_file_and_loads_as_float32(tokenizer: Tokenizer, tmp_path: Path):
    weights = random_weights(tiny_model())
    for name in ("float32", "bfloat16"):
        save_policy(tmp_path / name, tiny_model(), weights, tokenizer, {}, dtype=name)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("float32", "bfloat16"))
    assert half < 0.55 * full
    again, *_ = load_policy(tmp_path / "bfloat16", Kimi())
    for name, array in again.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, weights[name], rtol=2**-8)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_a_part_is_no_policy(tokenizer: Tokenizer, tmp_path: Path, name: str):
    save_policy(tmp_path, tiny_model(), random_weights(tiny_model()), tokenizer, {})
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        load_policy(tmp_path, Kimi())


def test_a_torn_weight_file_is_named(tokenizer: Tokenizer, tmp_path: Path):
    save_policy(tmp_path, tiny_model(), random_weights(tiny_model()), tokenizer, {})
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load_policy(tmp_path, Kimi())
