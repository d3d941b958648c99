"""INT4 matrices in compressed-tensors' format, alone and in checkpoints."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_policy, tiny_model
from torch.utils.checkpoint import checkpoint

from model.decoder import PAGE, export_weights
from model.kernels import native
from model.kimi import int4
from model.kimi.config import ModelConfig
from model.kimi.decoder import NativeDecoder, ReferenceDecoder
from model.kimi.files.checkpoint import load, save
from model.kimi.moe import Experts
from model.kimi.transformer import Transformer
from model.policy_files import INDEX, SINGLE

DOWN = "language_model.model.layers.1.mlp.experts.3.down_proj.weight"


def matrix(outputs: int = 6, inputs: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))


def test_eight_codes_are_a_word_lowest_nibble_first():
    codes = torch.arange(-8, 8, dtype=torch.int8)[None]
    words = int4.pack(codes)
    assert [f"{word & 0xFFFFFFFF:08x}" for word in words[0].tolist()] == ["76543210", "fedcba98"]
    assert torch.equal(int4.unpack(words), codes)


def test_packing_is_that_of_compressed_tensors():
    theirs = pytest.importorskip(
        "compressed_tensors.compressors.pack_quantized.helpers", reason="the reference is not installed"
    )
    codes = torch.randint(-8, 8, (5, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    words = int4.pack(codes)
    assert torch.equal(theirs.pack_to_int32(codes, 4), words)
    assert torch.equal(theirs.unpack_from_int32(words, 4, codes.shape), int4.unpack(words))


def test_each_weight_is_the_nearest_code_and_a_group_reaches_7():
    weight = matrix()
    weight[2, 32:64] = 0
    codes, scale = int4.quantize(weight)
    assert (codes.dtype, scale.dtype, scale.shape) == (torch.int8, torch.bfloat16, (6, 3))
    error = (int4.dequantize(codes, scale) - weight).abs().view(6, 3, 32)
    assert (error <= 0.505 * scale.float()[..., None]).all()  # half a step, and bfloat16's rounding of the scale
    largest = codes.view(6, 3, 32).abs().amax(-1)
    assert largest[2, 1] == 0 and (largest.flatten().sort().values[1:] == 7).all()
    relative = (int4.dequantize(codes, scale) - weight).norm() / weight.norm()
    assert 0.05 < relative < 0.12


def test_what_is_quantised_stays_what_it_is():
    codes, scale = int4.quantize(matrix(64, 1024))
    again, same = int4.quantize(int4.dequantize(codes, scale))
    assert torch.equal(again, codes) and torch.equal(same, scale)


def test_the_packed_shapes_are_the_published_ones():
    parts = int4.packed("w", torch.zeros(4, 7168))
    assert {name: list(tensor.shape) for name, tensor in parts.items()} == {
        "w_packed": [4, 896],
        "w_scale": [4, 224],
        "w_shape": [2],
    }
    assert [tensor.dtype for tensor in parts.values()] == [torch.int32, torch.bfloat16, torch.int32]
    assert (int4.unpacked("w", *parts.values(), 32) == 0).all()


def test_a_matrix_without_whole_groups_is_refused():
    with pytest.raises(ValueError, match="48 inputs has no whole groups of 32"):
        int4.quantize(matrix(inputs=48))


@pytest.fixture(scope="module")
def policy() -> Transformer:
    return random_policy(tiny_model(hidden_size=64, moe_intermediate_size=32, vocab_size=50))


@pytest.fixture
def folder(policy: Transformer, tmp_path: Path) -> Path:
    save(policy, tmp_path / "kimi", "kimi_k25", int4_experts=True)
    return tmp_path / "kimi"


@pytest.mark.parametrize("shard_bytes", [10**9, 40_000])
def test_routed_experts_come_back_quantised_and_all_else_as_it_was(
    policy: Transformer, shard_bytes: int, tmp_path: Path
):
    save(policy, tmp_path / "first", "kimi_k25", int4_experts=True, shard_bytes=shard_bytes)
    again = load(tmp_path / "first")
    for name, tensor in policy.state_dict().items():
        got = again.state_dict()[name]
        if ".experts." in name:
            wanted = torch.stack([int4.dequantize(*int4.quantize(expert)) for expert in tensor])
            assert torch.equal(got, wanted) and not torch.equal(got, tensor)
        else:
            assert torch.equal(got, tensor), name
    save(again, tmp_path / "second", "kimi_k25", int4_experts=True, shard_bytes=shard_bytes)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "second").iterdir())
    assert all((tmp_path / "first" / f).read_bytes() == (tmp_path / "second" / f).read_bytes() for f in files)


def test_the_configuration_says_what_is_packed(folder: Path):
    given = json.loads((folder / "config.json").read_text())["text_config"]["quantization_config"]
    assert int4.group_size_of(given) == 32
    tensors = load_file(folder / SINGLE)
    packed = {name.removesuffix("_packed") for name in tensors if name.endswith("_packed")}
    assert len(packed) == 2 * 4 * 3 and all(".mlp.experts." in name for name in packed)
    assert not packed & tensors.keys()


def test_a_scale_may_lie_in_another_shard(policy: Transformer, folder: Path):
    tensors = load_file(folder / SINGLE)
    moved = {name: tensors.pop(name) for name in (f"{DOWN}_scale", f"{DOWN}_shape")}
    (folder / SINGLE).unlink()
    places = {}
    for file, content in (("a.safetensors", moved), ("b.safetensors", tensors)):
        save_file(content, folder / file)
        places |= dict.fromkeys(content, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    wanted = int4.dequantize(*int4.quantize(policy.blocks()[1].mlp.experts.down_proj[3]))
    assert torch.equal(load(folder).blocks()[1].mlp.experts.down_proj[3], wanted)


def changed(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / SINGLE) | {f"{DOWN}_{part}": tensor for part, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / SINGLE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": None}, "_scale"),
        ({"shape": None}, "_shape"),
        ({"packed": None}, DOWN),
        ({"packed": torch.zeros(64, 5, dtype=torch.int32)}, r"_packed has shape \[64, 5\]"),
        ({"scale": torch.zeros(64, 2)}, r"_scale has shape \[64, 2\]"),
        ({"packed": torch.zeros(64, 4)}, "_packed is torch.float32"),
        ({"shape": torch.tensor([32, 32])}, r"_shape \[32, 32\]"),
    ],
)
def test_parts_that_do_not_fit_together_are_named(folder: Path, changes: dict[str, Any], message: str):
    changed(folder, **changes)
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert DOWN in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "fp8"}, "quant_method='fp8'"),
        ({"format": "float-quantized"}, "format='float-quantized'"),
        ({"config_groups": {}}, r"config_groups=\{\}"),
        ({"num_bits": 8}, "num_bits=8"),
        ({"symmetric": False}, "symmetric=False"),
        ({"strategy": "channel"}, "strategy='channel'"),
        ({"actorder": "group"}, "actorder='group'"),
    ],
)
def test_other_quantisations_are_refused(folder: Path, changes: dict[str, Any], message: str):
    hf = json.loads((folder / "config.json").read_text())
    config = hf["text_config"]["quantization_config"]
    inside = changes.keys() & config["config_groups"]["group_0"]["weights"].keys()
    (config["config_groups"]["group_0"]["weights"] if inside else config).update(changes)
    (folder / "config.json").write_text(json.dumps(hf))
    with pytest.raises(ValueError, match=message) as error:
        load(folder)
    assert str(folder / "config.json") in str(error.value)


def quantised(**changes: Any) -> ModelConfig:
    shape = {"hidden_size": 64, "moe_intermediate_size": 32, "vocab_size": 50, "latent_norm_eps": 1e-6}
    return tiny_model(**shape, quantize_experts="int4", **changes)


def logits_of(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.lm_head(model.hidden(tokens))


@pytest.mark.parametrize("format", ["hf", "kimi_k25"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_packed_computes_the_training_forward_bit_for_bit(format: str, dtype: torch.dtype, tmp_path: Path):
    model = random_policy(quantised())
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    tokens = torch.arange(40)[None]
    wanted = logits_of(model.train(), tokens)
    save(model, tmp_path / format, format, int4_experts=True)
    again = load(tmp_path / format, dtype)
    assert again.config.quantize_experts == "int4"
    if dtype == torch.float32:  # bfloat16 does not hold code times scale, so quantising again is another thing there
        assert torch.equal(logits_of(again, tokens), wanted)
    plain = load(tmp_path / format, dtype)  # a reader that knows nothing of the training: the values are in the files
    for module in plain.modules():
        if isinstance(module, Experts):
            module.quantized = False
    assert torch.equal(logits_of(plain, tokens), wanted)
    for module in model.modules():
        if isinstance(module, Experts):
            module.quantized = False
    assert (logits_of(model, tokens) - wanted).abs().max() > 1e-3  # and quantising is no small thing


def test_the_gradient_passes_straight_through():
    weight = matrix(4, 64).requires_grad_()
    grad = matrix(4, 64, seed=1)
    out = int4.fake_quant(weight)
    out.backward(grad)
    assert weight.grad is not None and torch.equal(weight.grad, grad)
    assert torch.equal(out, int4.dequantize(*int4.quantize(weight.detach())))
    stacked = torch.stack([matrix(4, 64), matrix(4, 64, seed=2)])
    assert torch.equal(int4.fake_quant(stacked)[1], int4.fake_quant(stacked[1]))


def test_experts_get_the_gradient_of_their_quantised_selves():
    model, plain = random_policy(quantised()), random_policy(quantised())
    for one, two in zip(model.modules(), plain.modules(), strict=True):
        if isinstance(one, Experts) and isinstance(two, Experts):
            two.quantized = False
            with torch.no_grad():
                two.gate_up_proj.copy_(one.matrices()[0])
                two.down_proj.copy_(one.matrices()[1])
    for policy in (model, plain):
        policy.lm_head(policy.hidden(torch.arange(30)[None])).square().mean().backward()
    theirs = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.equal(parameter.grad, theirs[name].grad), name


@pytest.fixture
def quantised_shapes(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shape of every matrix that is quantised during the test."""
    seen: list[torch.Size] = []
    quantise = int4.quantize

    def counted(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(weight.shape)
        return quantise(weight)

    monkeypatch.setattr(int4, "quantize", counted)
    return seen


def recomputed_loss(model: Transformer) -> torch.Tensor:
    hidden = checkpoint(lambda tokens: model.hidden(tokens), torch.arange(12)[None], use_reentrant=False)
    return model.lm_head(hidden).square().mean()


def test_weights_are_quantised_once_between_two_steps_however_many_passes_there_are(quantised_shapes: list):
    model = random_policy(quantised()).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    matrices = 2 * len(model.routers())
    for step in range(1, 4):
        for _ in range(3):
            recomputed_loss(model).backward()  # six forward passes: each is recomputed for its backward pass
        logits_of(model.eval(), torch.arange(5)[None])
        model.train()
        assert len(quantised_shapes) == step * matrices
        optimizer.step()


def test_a_changed_weight_is_quantised_again(quantised_shapes: list):
    model, tokens = random_policy(quantised()), torch.arange(9)[None]
    logits = logits_of(model, tokens)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    experts = next(module for module in model.modules() if isinstance(module, Experts))
    with torch.no_grad():
        experts.down_proj.mul_(2)
    doubled = logits_of(model, tokens)
    assert not torch.equal(doubled, logits)
    assert quantised_shapes[-1] == experts.down_proj.flatten(0, -2).shape
    model.load_state_dict(state)
    assert torch.equal(logits_of(model, tokens), logits)
    experts.down_proj.data.mul_(2)  # without autograd
    model.weights_changed()
    assert torch.equal(logits_of(model, tokens), doubled)
    assert torch.equal(experts.matrices()[1], int4.fake_quant(experts.down_proj))


def test_copies_of_a_model_quantise_for_themselves():
    model, tokens = random_policy(quantised()), torch.arange(9)[None]
    logits = logits_of(model, tokens)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for module in other.modules():
            if isinstance(module, Experts):
                module.gate_up_proj.mul_(-1)
    assert not torch.equal(logits_of(other, tokens), logits)
    assert torch.equal(logits_of(model, tokens), logits)


@pytest.mark.parametrize("decoder", [NativeDecoder, ReferenceDecoder])
def test_the_engine_computes_with_quantised_experts_too(decoder: Any):
    if decoder is NativeDecoder and native.load_library() is None:
        pytest.skip("no C++ compiler")
    model = random_policy(quantised())
    tokens = torch.arange(PAGE)
    engine = decoder(model.config, 2)
    engine.load(export_weights(model))
    count = np.arange(PAGE, dtype=np.int32)
    zeros, tables = np.zeros(PAGE, np.int32), np.zeros((1, 1), np.int32)
    got = engine.forward(tokens.numpy().astype(np.int32), count, zeros, tables, count)
    assert np.abs(got - logits_of(model, tokens[None])[0].numpy()).max() < 2e-5


def test_widths_without_whole_groups_are_refused():
    with pytest.raises(ValueError, match="moe_intermediate_size=48 must be a multiple of 32"):
        tiny_model(moe_intermediate_size=48, quantize_experts="int4")
