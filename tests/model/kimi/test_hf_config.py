"""config.json to shape and back: keys that affect the numbers are converted or refused by key and value."""

from __future__ import annotations

import math
from typing import Any

import pytest
from tiny import tiny_model

from model.kimi.config import ModelConfig, YarnScaling
from model.kimi.files.hf_config import from_hf, to_hf

# config.json of moonshotai/Kimi-K2.5, the text part
K2_5: dict[str, Any] = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 7168,
    "num_hidden_layers": 61, "num_attention_heads": 64, "num_key_value_heads": 64, "intermediate_size": 18432,
    "moe_intermediate_size": 2048, "n_routed_experts": 384, "num_experts_per_tok": 8, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "topk_method": "noaux_tc",
    "scoring_func": "sigmoid", "norm_topk_prob": True, "routed_scaling_factor": 2.827, "aux_loss_alpha": 0.001,
    "seq_aux": True, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "attention_bias": False, "attention_dropout": 0.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "vocab_size": 163840, "max_position_embeddings": 262144, "num_nextn_predict_layers": 0,
    "tie_word_embeddings": False, "initializer_range": 0.02, "ep_size": 1, "rope_theta": 50000.0,
    "rope_scaling": {
        "type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096, "beta_fast": 32.0, "beta_slow": 1.0,
        "mscale": 1.0, "mscale_all_dim": 1.0,
    },
}  # fmt: skip


def test_k2_5_has_its_published_softmax_scale_whichever_file_it_comes_from():
    text = from_hf(K2_5)
    assert text == from_hf({"model_type": "kimi_k25", "text_config": K2_5, "vision_config": {}})
    assert text == from_hf({**K2_5, "model_type": "kimi_k2"})
    assert (text.rms_norm_eps, text.latent_norm_eps, text.routed_scaling_factor) == (1e-5, 1e-6, 2.827)
    assert text.rope_scaling is not None and text.rope_scaling.rotation_scale == 1.0
    assert math.isclose(text.softmax_scale, 192**-0.5 * (0.1 * math.log(64) + 1) ** 2)
    assert abs(text.softmax_scale - 0.14468) < 1e-5


def test_the_form_of_transformers_5_says_the_same():
    hf = {key: value for key, value in K2_5.items() if key not in ("rope_theta", "rope_scaling")}
    yarn = {key: value for key, value in K2_5["rope_scaling"].items() if key != "type"}
    hf["rope_parameters"] = {**yarn, "rope_type": "yarn", "rope_theta": 50000.0}
    assert from_hf(hf) == from_hf(K2_5)
    hf["rope_parameters"]["factor"] = None  # then it is the context over the pretrained one
    assert from_hf(hf) == from_hf(K2_5)


@pytest.mark.parametrize(
    "config",
    [
        from_hf(K2_5),
        tiny_model(),
        tiny_model(n_routed_experts=8, n_group=4, topk_group=2, rope_interleave=False, q_lora_rank=None),
        tiny_model(look_back=False),
        tiny_model(rope_scaling=YarnScaling(factor=4, original_max_position_embeddings=64), latent_norm_eps=1e-6),
    ],
    ids=["k2.5", "tiny", "groups", "no look-back", "yarn"],
)
@pytest.mark.parametrize("model_type", ["deepseek_v3", "kimi_k25"])
def test_a_shape_comes_back_as_it_was_written(config: ModelConfig, model_type: str):
    hf = to_hf(config, model_type)
    assert from_hf(hf) == config
    assert hf["model_type"] == model_type


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("tie_word_embeddings", True),
        ("scoring_func", "softmax"),
        ("topk_method", "greedy"),
        ("moe_layer_freq", 2),
        ("num_key_value_heads", 8),
        ("model_type", "deepseek_v2"),
        ("n_group", 7),
        ("topk_group", 3),
        ("kv_lora_rank", -4),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_scaling", {**K2_5["rope_scaling"], "attention_factor": 2.0}),
        ("rope_scaling", {"type": "yarn", "factor": 64.0}),
    ],
)
def test_what_cannot_be_computed_is_refused_by_key_and_value(key: str, value: Any):
    shown = "'linear'" if value == {"type": "linear", "factor": 2.0} else None if key == "rope_scaling" else repr(value)
    with pytest.raises(ValueError, match=key) as error:
        from_hf({**K2_5, key: value})
    assert shown is None or shown in str(error.value)


def test_missing_keys_and_a_missing_text_part_are_named():
    with pytest.raises(ValueError, match="lacks kv_lora_rank, n_group"):
        from_hf({key: value for key, value in K2_5.items() if key not in ("kv_lora_rank", "n_group")})
    with pytest.raises(ValueError, match="lacks rope_theta"):
        from_hf({key: value for key, value in K2_5.items() if key != "rope_theta"})
    with pytest.raises(ValueError, match="text_config=None"):
        from_hf({"model_type": "kimi_k25"})
    with pytest.raises(ValueError, match="tie_word_embeddings=true"):
        from_hf({"model_type": "kimi_k25", "text_config": K2_5, "tie_word_embeddings": True})


def test_a_dump_holds_only_what_a_policy_uses_so_that_old_hashes_and_files_stay_valid():
    dump = tiny_model().model_dump(mode="json")
    assert not dump.keys() & {"n_group", "topk_group", "rope_scaling", "rope_interleave", "latent_norm_eps"}
    grouped = tiny_model(n_group=2, topk_group=2)
    assert grouped.model_dump(mode="json") == {**dump, "n_group": 2, "topk_group": 2}
    yarn = tiny_model(rope_scaling={"factor": 8.0, "original_max_position_embeddings": 64, "mscale": 0.5})
    for config in (tiny_model(), grouped, yarn):
        assert ModelConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_group": 3}, "n_group=3 must split n_routed_experts=4"),
        ({"n_group": 4}, "groups of two or more"),
        ({"topk_group": 2}, "topk_group=2 of n_group=1"),
        ({"n_group": 2, "num_experts_per_tok": 3}, "cannot give num_experts_per_tok=3"),
    ],
)
def test_groups_that_cannot_be_routed_to_are_refused(changes: dict[str, int], message: str):
    with pytest.raises(ValueError, match=message):
        tiny_model(**changes)
