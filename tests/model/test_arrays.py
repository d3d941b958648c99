"""Weights in bfloat16 on all their ways: pickled, filled in, exported, on disk, merged, into both decoders."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import SHAPE, random_policy, random_weights

from model.arrays import BFLOAT16, Sent, fill, to_numpy, to_tensor
from model.decoder import PAGE, NotFinite, Weights, export_weights
from model.kimi.config import ModelConfig
from model.kimi.decoder import NativeDecoder, ReferenceDecoder
from model.kimi.family import Kimi
from model.lora import merged
from model.policy_files import load_policy, save_policy
from model.tokenizer.tokenizer import Tokenizer


class Short(ModelConfig):
    """The tiny policy, kept and sent in bfloat16."""

    @property
    def weights_dtype(self) -> str:
        return "bfloat16"


SHORT = Short(**SHAPE)
BIAS = "e_score_correction_bias"


def test_tensors_and_arrays_share_memory_and_keep_their_type():
    for kind in (torch.float32, torch.bfloat16, torch.int64):
        tensor = torch.arange(6).to(kind).view(2, 3)
        array = to_numpy(tensor)
        tensor[0, 0] = 5
        array.flags.writeable = False  # as Ray hands them out
        back = to_tensor(array)
        assert back.dtype == kind and back.data_ptr() == tensor.data_ptr()
        assert array.astype(np.float32).tolist() == [[5, 1, 2], [3, 4, 5]] == back.tolist()


def test_sent_weights_are_pickled_without_a_copy():
    weights = {"a": np.arange(5000, dtype=np.float32), "b": to_numpy(torch.randn(70, 50).bfloat16())}
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(Sent(weights), protocol=5, buffer_callback=buffers.append)
    assert len(stream) < 1000 and len(buffers) == 2
    arrived = pickle.loads(stream, buffers=buffers)
    assert type(arrived) is dict and arrived["b"].dtype == BFLOAT16 and list(arrived) == list(weights)
    assert all(np.shares_memory(arrived[name], weights[name]) for name in weights)


def test_parameters_are_exported_in_the_policys_type_and_buffers_whole():
    policy = random_policy(SHORT)
    found = export_weights(policy)
    for name, tensor in policy.state_dict().items():
        buffer = name.endswith(BIAS)
        assert found[name].dtype == (np.float32 if buffer else BFLOAT16)
        assert torch.equal(to_tensor(found[name]), tensor if buffer else tensor.bfloat16())


def short_and_long() -> tuple[Weights, Weights]:
    """A policy in bfloat16, and the same values in float32."""
    short = random_weights(SHORT)
    return short, {name: array.astype(np.float32) for name, array in short.items()}


@pytest.mark.parametrize("kind", [NativeDecoder, ReferenceDecoder])
def test_decoders_take_either_type(kind: type):
    tokens = np.arange(5, 12, dtype=np.int32)
    positions = np.arange(7, dtype=np.int32)
    tables = np.zeros((1, SHORT.max_position_embeddings // PAGE), np.int32)
    logits = []
    for weights in short_and_long():
        decoder = kind(SHORT, 4)
        decoder.load(weights)
        logits.append(decoder.forward(tokens, positions, np.zeros(7, np.int32), tables, positions))
    assert np.array_equal(*logits)
    broken = short_and_long()[0]
    broken["norm.weight"][3] = np.nan
    with pytest.raises(NotFinite, match=r"norm\.weight"):
        kind(SHORT, 4).load(broken)


def test_a_policy_on_disk_keeps_the_types(tmp_path: Path, tokenizer: Tokenizer):
    short, _ = short_and_long()
    save_policy(tmp_path / "p", SHORT, short, tokenizer, {})
    file = tmp_path / "p" / "model.safetensors"
    assert file.stat().st_size < 1.2 * sum(array.nbytes for array in short.values()) + 8192
    again, *_ = load_policy(tmp_path / "p", Kimi())  # a shape of float32: what it reads are these values
    assert all(np.array_equal(again[name], short[name].astype(np.float32)) for name in short)


def test_adapters_merge_into_the_bases_type():
    base = {"x.weight": to_numpy(torch.ones(4, 3).bfloat16()), "y.weight": np.ones(2, np.float32)}
    down, up = np.full((2, 3), 0.5, np.float32), np.full((4, 2), 0.25, np.float32)
    found = merged(base, {"lora.x.down": down, "lora.x.up": up})
    assert found["x.weight"].dtype == BFLOAT16 and (found["x.weight"] == 1.25).all()
    assert found["y.weight"] is base["y.weight"]


def test_weights_of_another_module_are_refused_by_name():
    layer = torch.nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"bias are missing or unknown"):
        fill(layer, {"weight": np.zeros((2, 3), np.float32)})
    with pytest.raises(ValueError, match=r"weight bias has shape \(3,\), here it is \(2,\)"):
        fill(layer, {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)})
