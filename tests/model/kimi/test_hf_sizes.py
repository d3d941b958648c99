"""The published models, without their weights: names, shapes and counts of parameters as in the checkpoints."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from test_hf_config import K2_5

from model.kimi.files.hf_config import from_hf, to_hf
from model.kimi.files.hf_layout import PREFIXES, Slot, layout, our_shapes
from parl.config.load import load_config

MODELS = Path(__file__).parents[3] / "configs" / "models"
VISION_TENSORS = 335  # 27 blocks of 12, patch embedding 2, positions 1, final norm 2, projector 6


@pytest.fixture(scope="module")
def k2_5() -> dict[str, Slot]:
    return layout(from_hf(K2_5), PREFIXES["kimi_k25"])


def test_k2_5_has_1026_billion_parameters_and_32_billion_active(k2_5: dict[str, Slot]):
    size = {name: math.prod(slot.shape) for name, slot in k2_5.items() if "correction_bias" not in name}
    routed = sum(count for name, count in size.items() if ".experts." in name)
    total = sum(size.values())
    embedding = 163_840 * 7168
    active = total - routed + routed * 8 // 384
    assert routed == 60 * 384 * 3 * 2048 * 7168
    assert round(routed / 1e9, 2) == 1014.69
    assert round(total / 1e9, 2) == 1026.41
    assert (round(active / 1e9, 1), round((active - embedding) / 1e9, 1)) == (32.9, 31.7)
    ours = our_shapes(from_hf(K2_5))
    assert total == sum(math.prod(shape) for name, shape in ours.items() if "correction_bias" not in name)


def test_k2_5_has_the_published_names_and_shapes(k2_5: dict[str, Slot]):
    shapes = {name: list(slot.shape) for name, slot in k2_5.items()}
    expected = {
        "lm_head.weight": [163840, 7168],
        "model.embed_tokens.weight": [163840, 7168],
        "model.norm.weight": [7168],
    }
    attention = {
        "q_a_proj": [1536, 7168], "q_a_layernorm": [1536], "q_b_proj": [12288, 1536],
        "kv_a_proj_with_mqa": [576, 7168], "kv_a_layernorm": [512], "kv_b_proj": [16384, 512], "o_proj": [7168, 8192],
    }  # fmt: skip
    for layer in range(61):
        here = f"model.layers.{layer}."
        expected |= {f"{here}{norm}_layernorm.weight": [7168] for norm in ("input", "post_attention")}
        expected |= {f"{here}self_attn.{name}.weight": shape for name, shape in attention.items()}
        if layer == 0:
            widths = {"mlp": 18432}
        else:
            widths = {"mlp.shared_experts": 2048} | {f"mlp.experts.{expert}": 2048 for expert in range(384)}
            expected |= {f"{here}mlp.gate.weight": [384, 7168], f"{here}mlp.gate.e_score_correction_bias": [384]}
        for part, width in widths.items():
            expected |= {f"{here}{part}.{name}_proj.weight": [width, 7168] for name in ("gate", "up")}
            expected[f"{here}{part}.down_proj.weight"] = [7168, width]
    assert shapes == {f"language_model.{name}": shape for name, shape in expected.items()}


def test_k2_5_has_the_published_number_of_tensors(k2_5: dict[str, Slot]):
    """208,550 in the checkpoint, where an expert's matrix is three: packed codes, scales and shape."""
    experts = sum(".experts." in name for name in k2_5)
    assert len(k2_5) + 2 * experts + VISION_TENSORS == 208_550


def test_every_part_of_our_tensors_is_in_the_file_once():
    config = from_hf({**K2_5, "num_hidden_layers": 3, "n_routed_experts": 16, "hidden_size": 64})
    covered: dict[str, int] = {}
    for slot in layout(config).values():
        covered[slot.name] = covered.get(slot.name, 0) + math.prod(slot.shape)
    assert covered == {name: math.prod(shape) for name, shape in our_shapes(config).items()}


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [("kimi_k2_5", 1026.41, 32.9), ("deepseek_v3", 671.03, 37.6), ("moonlight_16b_a3b", 15.96, 2.9)],
)
def test_the_shipped_shapes_have_the_published_sizes(name: str, billions: float, active: float):
    config = load_config(MODELS / f"{name}.yaml").model.shape
    size = {n: math.prod(shape) for n, shape in our_shapes(config).items() if "correction_bias" not in n}
    routed = sum(count for n, count in size.items() if ".experts." in n)
    unused = routed - routed * config.num_experts_per_tok // config.n_routed_experts
    total = sum(size.values())
    assert (round(total / 1e9, 2), round((total - unused) / 1e9, 1)) == (billions, active)
    assert from_hf(to_hf(config)) == config
    if name == "kimi_k2_5":
        assert config == from_hf(K2_5)
