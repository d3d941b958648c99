"""``model.init``: a run starts from a checkpoint, takes its shape and tokenizer over, and names what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from seeing import VISION, seeing_model, seeing_policy
from tiny import SHAPE, VOCAB, random_policy, random_weights, tiny_config, tiny_model

from model.chat.kimi import MEDIA_PAD
from model.decoder import export_weights
from model.kimi.family import Kimi
from model.kimi.files.checkpoint import save
from model.policy_files import load_policy, save_policy
from model.tokenizer.tokenizer import KimiTokenizer, Tokenizer
from parl.cold_start.imitation import run_sft
from parl.cold_start.starting_policy import starting_policy
from parl.config.load import config_hash, load_config, to_yaml
from parl.config.schema import Config
from parl.errors import UserError
from parl.run.job import run_training
from parl.serve.export import export

KIMI = Path(__file__).parents[2] / "data" / "kimi"
YARN = {"factor": 4.0, "original_max_position_embeddings": 256}


@pytest.fixture
def policy(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A policy's folder, of another shape than the configurations' default."""
    config = tiny_model(rope_scaling=YARN, latent_norm_eps=1e-6)
    save_policy(tmp_path / "policy", config, random_weights(config), tokenizer, {})
    return tmp_path / "policy"


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    """A run that says nothing of the model."""
    file = tmp_path / "run.yaml"
    file.write_text(f"root: {tmp_path / 'runs'}\n")
    return file


def config_of(file: Path, init: Path, *more: str) -> Config:
    return load_config(file, [f"model.init={init}", *more])


@pytest.mark.parametrize("format", ["policy", "hf", "kimi_k25"])
def test_shape_weights_and_tokenizer_come_from_the_checkpoint(
    policy: Path, yaml_file: Path, format: str, tokenizer: Tokenizer
):
    init = policy if format == "policy" else export(policy, format=format)
    config = config_of(yaml_file, init)
    weights, shape, _, _ = load_policy(policy, Kimi())
    assert (config.model.hidden_size, config.model.rope_scaling) == (shape.hidden_size, shape.rope_scaling)
    again, same_shape, same_tokenizer, meta = load_policy(starting_policy(config), Kimi())
    assert same_shape == config.model.shape
    assert same_tokenizer.fingerprint == tokenizer.fingerprint
    assert again.keys() == weights.keys() and all(np.array_equal(again[name], weights[name]) for name in weights)
    assert meta == {"init": str(init)}


@pytest.mark.parametrize("format", ["policy", "kimi_k25"])
def test_the_vision_side_comes_along(yaml_file: Path, format: str, tokenizer: Tokenizer, tmp_path: Path):
    shape = seeing_model(tokenizer.special[MEDIA_PAD], latent_norm_eps=1e-6)
    weights = export_weights(seeing_policy(shape))
    save_policy(tmp_path / "policy", shape, weights, tokenizer, {})
    init = tmp_path / "policy" if format == "policy" else export(tmp_path / "policy", format=format)
    config = config_of(yaml_file, init, "envs.config.mix={picture: 1.0}")
    assert config.model.vision == shape.vision
    again, same_shape, _, _ = load_policy(starting_policy(config), Kimi())
    assert same_shape == config.model.shape
    assert again.keys() == weights.keys() and all(np.array_equal(again[name], weights[name]) for name in weights)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
    with pytest.raises(UserError, match=r"model\.vision = .*leave the key out"):
        config_of(yaml_file, init, f"model.vision={json.dumps(VISION | {'hidden_size': 64})}")


def test_another_placeholder_than_its_tokenizers_is_named(yaml_file: Path, tokenizer: Tokenizer, tmp_path: Path):
    shape = seeing_model(5)
    save_policy(tmp_path / "policy", shape, export_weights(seeing_policy(shape)), tokenizer, {})
    fails(yaml_file, tmp_path / "policy", "media_placeholder_token_id=5", f"set it to {tokenizer.special[MEDIA_PAD]}")


def test_the_resolved_configuration_reads_back_and_takes_overrides(policy: Path, yaml_file: Path, tmp_path: Path):
    config = config_of(yaml_file, policy)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config
    assert config_of(yaml_file, Path("policy")).model.init == policy  # beside the file
    with pytest.raises(UserError, match=r"model\.hidden_size = 64: .*policy has 32; leave the key out"):
        config_of(yaml_file, policy, "model.hidden_size=64")
    with pytest.raises(UserError, match=r"did you mean model\.hidden_size"):
        config_of(yaml_file, policy, "model.hidden_sise=64")


def test_the_key_changes_no_hash_of_runs_without_it(tmp_path: Path):
    config = tiny_config(tmp_path)
    assert config.model.model_dump() == config.model.shape.model_dump()
    assert config_hash(config.model) == config_hash(config.model.shape)


def test_it_is_read_once_and_again_when_it_changes(policy: Path, yaml_file: Path):
    config = config_of(yaml_file, policy)
    first = starting_policy(config)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert starting_policy(config) == first and (first / "model.safetensors").stat().st_mtime_ns == stamp
    weights = {name: tensor + 1 for name, tensor in load_file(policy / "model.safetensors").items()}
    save_file(weights, policy / "model.safetensors")
    second = starting_policy(config)
    assert second != first
    assert np.array_equal(load_policy(second, Kimi())[0]["norm.weight"], weights["norm.weight"].numpy())


# ---------------------------------------------------------------- what does not fit is named


def fails(yaml_file: Path, init: Path, *parts: str) -> None:
    with pytest.raises(UserError) as error:
        starting_policy(config_of(yaml_file, init))
    for part in parts:
        assert part in str(error.value)


def test_folders_that_are_no_checkpoint(policy: Path, yaml_file: Path, tmp_path: Path):
    fails(yaml_file, tmp_path / "none", "model.init", "no such folder")
    (tmp_path / "empty").mkdir()
    fails(yaml_file, tmp_path / "empty", str(tmp_path / "empty" / "config.json"))
    (policy / "tokenizer.json").unlink()
    fails(yaml_file, policy, "model.init", str(policy / "tokenizer.json"))


def test_a_tensor_of_another_shape_or_a_missing_one(policy: Path, yaml_file: Path):
    file, name = policy / "model.safetensors", "layers.1.mlp.experts.down_proj"
    tensors = load_file(file)
    save_file({**tensors, name: torch.zeros(4, 32, 8)}, file)
    fails(yaml_file, policy, str(file), name, "[4, 32, 8]", "[4, 32, 16]")
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file)
    fails(yaml_file, policy, str(policy), name)


def test_a_shape_that_cannot_be_had(policy: Path, yaml_file: Path):
    tree = json.loads((policy / "config.json").read_text())
    (policy / "config.json").write_text(json.dumps({**tree, "qk_rope_head_dim": 7}))
    fails(yaml_file, policy, str(policy / "config.json"), "qk_rope_head_dim=7")


def test_a_vocabulary_that_is_not_the_models(yaml_file: Path, tmp_path: Path):
    pytest.importorskip("tiktoken", reason="tiktoken is not installed (extra: kimi)")
    save(random_policy(tiny_model()), tmp_path / "mixed")
    KimiTokenizer(KIMI).save(tmp_path / "mixed")
    fails(yaml_file, tmp_path / "mixed", str(tmp_path / "mixed"), "163840 ids", f"vocab_size={VOCAB}")


def test_there_is_no_cold_start_to_train_then(policy: Path, yaml_file: Path):
    with pytest.raises(UserError, match="no cold start to train"):
        run_sft(config_of(yaml_file, policy))


# ---------------------------------------------------------------- a whole run


@pytest.mark.slow
def test_a_run_trains_from_an_exported_checkpoint(one_ray: None, tokenizer: Tokenizer, tmp_path: Path):
    shape = tiny_model(hidden_size=64, moe_intermediate_size=32, quantize_experts="int4")
    model = random_policy(shape)
    save_policy(tmp_path / "policy", shape, export_weights(model), tokenizer, {})
    init = export(tmp_path / "policy", int4=True)
    budget = {"orchestrator_steps": 2, "turn_tokens": 16}
    config = tiny_config(
        tmp_path / "runs", trainer={"steps": 1, "ranks": 1}, eval={"tasks": 2}, model={},
        rollouts={"group_size": 2, "tasks_per_step": 2, "concurrency": 4, "budget": budget},
    )  # fmt: skip
    tree = {key: value for key, value in config.model_dump(mode="json").items() if key != "model"}
    (tmp_path / "run.yaml").write_text(json.dumps(tree))
    config = load_config(tmp_path / "run.yaml", [f"model.init={init}"])
    run = run_training(config)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert row["policy/engine_gap"] < 1e-4  # the engine samples from what the learner trains
    weights, trained, _, _ = load_policy(run / "policy", Kimi())
    assert trained == config.model.shape and trained.quantize_experts == "int4"
    assert all(np.isfinite(array).all() for array in weights.values())
    assert SHAPE["hidden_size"] != trained.hidden_size
