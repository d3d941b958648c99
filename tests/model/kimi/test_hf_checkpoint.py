"""Hugging Face's file layout: unchanged by a round trip, and mistakes are reported with the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_policy, tiny_model

from model.kimi.files.checkpoint import load, save
from model.kimi.transformer import Transformer
from model.policy_files import INDEX, SINGLE

GATE = "model.layers.1.mlp.experts.2.gate_proj.weight"


@pytest.fixture(scope="module")
def policy() -> Transformer:
    return random_policy(tiny_model(n_group=2, topk_group=2, vocab_size=50))


def same(first: Transformer, second: Transformer) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000, 1], ids=["one file", "shards", "a file a tensor"])
@pytest.mark.parametrize("format", ["hf", "kimi_k25"])
def test_a_policy_comes_back_as_it_was_saved(policy: Transformer, format: str, shard_bytes: int, tmp_path: Path):
    save(policy, tmp_path, format, shard_bytes=shard_bytes)
    again = load(tmp_path).eval()
    assert again.config == policy.config and same(again, policy)
    tokens = torch.arange(12)[None]
    assert torch.equal(again.hidden(tokens), policy.hidden(tokens))  # also what no file holds: rotary tables, loads
    again.train()
    again.hidden(tokens)
    assert again.routers()[0].load_E.sum() == 12 * 2
    sizes = [file.stat().st_size for file in tmp_path.glob("*.safetensors")]
    assert (tmp_path / INDEX).exists() == (len(sizes) > 1)
    if shard_bytes == 20_000:
        assert 5 < len(sizes) < 40 and max(sizes) < 20_000 + 8_000  # the header


def test_the_files_are_named_and_indexed_as_published_ones(policy: Transformer, tmp_path: Path):
    save(policy, tmp_path / "hf", shard_bytes=20_000)
    index = json.loads((tmp_path / "hf" / INDEX).read_text())
    files = sorted(path.name for path in (tmp_path / "hf").glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert sorted(set(index["weight_map"].values())) == files
    tensors = {name: t for file in files for name, t in load_file(tmp_path / "hf" / file).items()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert tensors.keys() == index["weight_map"].keys()
    assert torch.equal(tensors[GATE], policy.blocks()[1].mlp.experts.gate_up_proj[2, :16])
    assert torch.equal(tensors[GATE.replace("gate", "up")], policy.blocks()[1].mlp.experts.gate_up_proj[2, 16:])
    save(policy, tmp_path / "kimi", "kimi_k25")
    assert load_file(tmp_path / "kimi" / SINGLE).keys() == {f"language_model.{name}" for name in tensors}


def test_in_bfloat16_the_correction_bias_stays_float32(policy: Transformer, tmp_path: Path):
    save(policy, tmp_path / "half", dtype=torch.bfloat16)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    half = load(tmp_path / "half", torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in half.state_dict().items()}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {
        f"layers.{layer}.mlp.gate.e_score_correction_bias" for layer in (1, 2)
    }
    save(half, tmp_path / "again")
    assert (tmp_path / "again" / SINGLE).read_bytes() == (tmp_path / "half" / SINGLE).read_bytes()
    assert same(load(tmp_path / "half"), half.float())


def test_vision_and_layers_that_predict_further_tokens_are_passed_over(policy: Transformer, tmp_path: Path):
    save(policy, tmp_path, "kimi_k25")
    tensors = load_file(tmp_path / SINGLE)
    tensors |= {"vision_tower.patch_embed.proj.bias": torch.ones(3), "mm_projector.proj.0.bias": torch.ones(3)}
    save_file(tensors, tmp_path / SINGLE)
    assert same(load(tmp_path), policy)
    save_file({**tensors, "language_model.model.layers.3.eh_proj.weight": torch.ones(2, 2)}, tmp_path / SINGLE)
    with pytest.raises(ValueError, match=r"layers\.3\.eh_proj\.weight is none of this model"):
        load(tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text())
    hf["text_config"]["num_nextn_predict_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(hf))
    assert same(load(tmp_path), policy)


@pytest.fixture
def folder(policy: Transformer, tmp_path: Path) -> Path:
    save(policy, tmp_path, shard_bytes=20_000)
    return tmp_path


def shard_with(folder: Path, name: str = GATE) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def rewrite(file: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(file) | {name.replace("__", "."): t for name, t in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)


def fails(folder: Path, kind: type[Exception], *parts: str) -> None:
    with pytest.raises(kind) as error:
        load(folder)
    for part in parts:
        assert part in str(error.value)


def test_a_wrong_shape(folder: Path):
    file = shard_with(folder)
    rewrite(file, **{GATE: torch.zeros(16, 24)})
    fails(folder, ValueError, GATE, str(file), "[16, 24]", "[16, 32]")


def test_a_kind_of_number_that_is_not_a_weight(folder: Path):
    file = shard_with(folder)
    rewrite(file, **{GATE: torch.zeros(16, 32, dtype=torch.int32)})
    fails(folder, ValueError, GATE, str(file), "int32")


def test_a_tensor_that_its_shard_lacks(folder: Path):
    file = shard_with(folder)
    rewrite(file, **{GATE: None})
    fails(folder, ValueError, GATE, str(file))


def test_a_tensor_that_nothing_holds(folder: Path):
    file = shard_with(folder)
    rewrite(file, **{GATE: None})
    index = json.loads((folder / INDEX).read_text())
    del index["weight_map"][GATE]
    (folder / INDEX).write_text(json.dumps(index))
    fails(folder, ValueError, f"{folder} lacks {GATE}")


def test_a_tensor_that_is_none_of_the_model_or_there_twice(folder: Path):
    file = sorted(folder.glob("*.safetensors"))[-1]
    rewrite(file, **{GATE: torch.zeros(16, 32)})
    fails(folder, ValueError, GATE, str(file), "twice")
    rewrite(file, **{GATE: None, "model.layers.1.mlp.experts.4.up_proj.weight": torch.zeros(16, 32)})
    fails(folder, ValueError, "experts.4.up_proj", str(file))


@pytest.mark.parametrize("keep", [0, 4, 300, -1])
def test_a_file_that_was_cut_off(folder: Path, keep: int):
    file = shard_with(folder)
    file.write_bytes(file.read_bytes()[:keep])
    fails(folder, ValueError, f"{file} cannot be read")


def test_a_file_that_is_not_there(folder: Path):
    file = shard_with(folder)
    file.unlink()
    fails(folder, FileNotFoundError, str(file))


def test_indexes_and_configurations_that_cannot_be_read(folder: Path):
    index = (folder / INDEX).read_text()
    (folder / INDEX).write_text(index[:-20])
    fails(folder, ValueError, str(folder / INDEX))
    (folder / INDEX).write_text("{}")
    fails(folder, ValueError, str(folder / INDEX), "weight_map")
    (folder / INDEX).write_text(json.dumps({"weight_map": {GATE: "../other.safetensors"}}))
    fails(folder, ValueError, str(folder / INDEX), GATE, "../other.safetensors")
    (folder / INDEX).unlink()
    fails(folder, FileNotFoundError, str(folder / SINGLE))
    hf = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**hf, "hidden_act": "gelu"}))
    fails(folder, ValueError, str(folder / "config.json"), "hidden_act='gelu'")
    (folder / "config.json").write_text(json.dumps({**hf, "quantization_config": {"quant_method": "fp8"}}))
    fails(folder, ValueError, str(folder / "config.json"), "quantization_config", "fp8")
    (folder / "config.json").unlink()
    fails(folder, FileNotFoundError, str(folder / "config.json"))


def test_weights_are_not_written_over(policy: Transformer, folder: Path):
    with pytest.raises(FileExistsError, match="already holds weights"):
        save(policy, folder)
    with pytest.raises(ValueError, match="format='gguf' is not one of hf, kimi_k25"):
        save(policy, folder / "new", "gguf")
