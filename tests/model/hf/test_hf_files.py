"""Folders of the family: what transformers wrote and reads again, a run's own, and what a policy of a folder costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", minversion="5.24", reason="the family hf needs transformers")

from transformers import AutoModelForCausalLM

from benchmarks.families import FAMILIES, ROOT, VOCAB, models, policy_of, shape_of
from model.decoder import export_weights
from model.family import family_of
from model.hf.family import Hf
from model.hf.shape import HfShape
from model.policy_files import load_policy, save_policy
from model.tokenizer.tokenizer import Tokenizer, load_tokenizer
from parl.config.family import family_at
from parl.config.load import load_config
from parl.plan.limits import check_memory
from parl.plan.table import read_model
from parl.serve.export import export


@pytest.mark.parametrize("family", ["llama", "llama_tied", "mixtral"])
def test_a_folder_that_transformers_wrote_comes_back(family: str, tmp_path: Path):
    policy, reference = models(family)
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    shape = family_of(policy.config).read_shape(tmp_path)
    assert (shape.vocab_size, shape.max_position_embeddings) == (VOCAB, 256)
    loaded = family_of(shape).load(tmp_path)
    for name, tensor in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_folder_that_lacks_a_tensor_is_refused_by_its_name(tmp_path: Path):
    _, reference = models("llama")
    state = {name: tensor for name, tensor in reference.state_dict().items() if "layers.1.mlp.up_proj" not in name}
    reference.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"missing keys: model\.layers\.1\.mlp\.up_proj\.weight"):
        Hf().load(tmp_path)


def starter_tokenizer() -> Tokenizer:
    folder = min((ROOT / "configs" / "starters").iterdir())
    return load_tokenizer(folder)


def test_a_run_s_policy_comes_back_from_its_folder(tmp_path: Path):
    policy = policy_of("llama_tied")
    save_policy(tmp_path / "p", policy.config, export_weights(policy), starter_tokenizer(), {})
    weights, shape, _, _ = load_policy(tmp_path / "p", family_of(policy.config))
    assert shape == policy.config
    assert all(np.array_equal(weights[name], array) for name, array in export_weights(policy).items())


@pytest.mark.parametrize("family", ["llama_tied", "qwen3_moe", "mixtral", "glm4_moe", "gpt_oss", "gemma3_text"])
def test_what_is_exported_is_the_policy_to_transformers(family: str, tmp_path: Path):
    policy = policy_of(family)
    save_policy(tmp_path / "policy", policy.config, export_weights(policy), starter_tokenizer(), {})
    folder = export(tmp_path / "policy", tmp_path / "out")
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values()), found
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        gap = (model(tokens).logits - policy.lm_head(policy.hidden(tokens))).abs().max()
    assert float(gap) < 1e-4
    stops = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert stops == list(Hf().chat(policy.config, load_tokenizer(folder)).stop_ids)
    assert load_tokenizer(folder).fingerprint == starter_tokenizer().fingerprint


def test_a_folder_is_read_by_the_family_that_knows_its_type(tmp_path: Path):
    for kind, home in (("llama", "model.hf.family:Hf"), ("deepseek_v3", "model.kimi.family:Kimi")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        assert family_at(tmp_path).Shape.home == home


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_are_those_of_the_model(family: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[family]))
    shape = Hf().read_shape(tmp_path)
    if family != "deepseek_v3":  # read by the family kimi
        assert read_model(str(tmp_path / "config.json"))[0] == shape
    costs, (_, reference) = Hf().costs(shape), models(family)
    assert costs.total == reference.num_parameters() == Hf().parameters(shape)
    assert (costs.layers, costs.hidden, costs.vocabulary) == (3, 32, VOCAB)
    if routes := shape.routes:
        stacks = [module.experts for module in reference.modules() if hasattr(module, "experts")]
        assert costs.routed == sum(p.numel() for stack in stacks for p in stack.parameters())
        assert (costs.routed_layers, costs.experts, costs.chosen) == (len(stacks), 4, 2) == (routes.layers, 4, 2)


def test_a_run_over_a_folder_is_planned_and_its_memory_is_checked(tmp_path: Path):
    models("llama")[1].save_pretrained(tmp_path / "llama")
    (tmp_path / "run.yaml").write_text("model: {family: hf, init: llama, dtype: bfloat16, max_position_embeddings: 64}")
    config = load_config(tmp_path / "run.yaml")
    assert (config.model.dtype, config.model.max_position_embeddings) == ("bfloat16", 64)
    check_memory(config.model, config.optimizer, config.trainer)
    assert read_model(str(tmp_path / "run.yaml"))[0] == config.model.shape


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"model_type": "gemma3"}, "see or hear"),
        ({"model_type": "llama", "num_attention_heads": "many"}, "num_attention_heads"),
        ({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Model"}}, "never run"),
    ],
)
def test_a_folder_s_bad_configuration_is_named(tree: dict[str, Any], said: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=said) as raised:
        Hf().read_shape(tmp_path)
    assert str(tmp_path / "config.json") in str(raised.value)


def test_costs_of_published_sizes():
    qwen3_30b_a3b = {
        **{"model_type": "qwen3_moe", "vocab_size": 151_936, "hidden_size": 2048, "num_hidden_layers": 48},
        **{"num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128, "intermediate_size": 6144},
        **{"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768},
        **{"max_position_embeddings": 40_960},
    }
    costs = Hf().costs(HfShape(transformers=qwen3_30b_a3b))
    assert round(costs.total / 1e9, 1) == 30.5
    assert round((costs.active + costs.embedding) / 1e9, 1) == 3.4  # published: 3.3 billion activated
    assert costs.cache == 2 * 48 * 2 * 4 * 128


def test_a_shape_of_a_file_s_own_size_must_agree_with_it():
    with pytest.raises(ValueError, match="vocab_size=95 is not the model's 96"):
        HfShape(transformers=FAMILIES["llama"], vocab_size=95)
    with pytest.raises(ValueError, match="max_position_embeddings=512 exceeds the model's own 256"):
        HfShape(transformers=FAMILIES["llama"], max_position_embeddings=512)
    assert shape_of("llama").model_copy(update={"max_position_embeddings": 8}).max_position_embeddings == 8
