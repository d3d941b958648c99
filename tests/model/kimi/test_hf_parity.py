"""Our model equals transformers' ``DeepseekV3ForCausalLM``: logits, gradients, the decode cache, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model
from torch import Tensor

from model.decoder import PAGE, export_weights
from model.kernels import native
from model.kimi.attention import rope_tables, yarn_frequencies
from model.kimi.config import ModelConfig
from model.kimi.decoder import NativeDecoder, ReferenceDecoder
from model.kimi.files import checkpoint
from model.kimi.files.hf_config import from_hf, to_hf
from model.kimi.transformer import Transformer
from parl.config.load import load_config

transformers = pytest.importorskip("transformers", minversion="5.13", reason="the reference is transformers' model")
modeling = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
MODELS = Path(__file__).parents[3] / "configs" / "models"
DeepseekV3ForCausalLM, DeepseekV3Config = transformers.DeepseekV3ForCausalLM, transformers.DeepseekV3Config

YARN = {"factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
GROUPS = {"n_routed_experts": 16, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
HF = {
    "latent_norm_eps": 1e-6,
    "rope_theta": 100.0,
    "vocab_size": 90,
    "max_position_embeddings": 128,
    "qk_rope_head_dim": 16,
}
CONFIGS = {
    "plain": tiny_model(**HF),
    "yarn": tiny_model(**HF, rope_scaling=YARN),
    "yarn, unequal mscales": tiny_model(**HF, rope_scaling={**YARN, "mscale": 1.0, "mscale_all_dim": 0.7}),
    "yarn, no mscale": tiny_model(**HF, rope_scaling={"factor": 4.0, "original_max_position_embeddings": 32}),
    "groups": tiny_model(**HF, **GROUPS, routed_scaling_factor=2.5),
    "groups and yarn": tiny_model(**HF, **GROUPS, rope_scaling=YARN, n_shared_experts=2, norm_topk_prob=False),
    "no query latent": tiny_model(**HF, q_lora_rank=None, first_k_dense_replace=2, rms_norm_eps=1e-3),
    "half-split rotation": tiny_model(**HF, rope_interleave=False, rope_scaling=YARN),
    "wide values": tiny_model(**{**HF, "v_head_dim": 40}, first_k_dense_replace=0),
}
needs_compiler = pytest.mark.skipif(native.load_library() is None, reason="no C++ compiler")
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def reference(config: ModelConfig, seed: int = 0) -> Any:
    """transformers' model of ``config`` with random weights, gains and correction biases far from neutral."""
    torch.manual_seed(seed)
    model = DeepseekV3ForCausalLM(DeepseekV3Config.from_dict(to_hf(config))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:
                buffer.normal_(std=0.1)
    return model


def pair(config: ModelConfig, folder: Path) -> tuple[Any, Transformer]:
    """transformers' model, and ours from its files."""
    theirs = reference(config)
    theirs.save_pretrained(folder)
    return theirs, checkpoint.load(folder)


def tokens_of(config: ModelConfig, rows: int = 2, length: int = 40) -> Tensor:
    return torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(1))


def largest(tensor: Tensor) -> float:
    return tensor.detach().abs().max().item()


def fused(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their parameters in memory (experts already stacked) under our names, gate and up of each part as one."""
    out: dict[str, Tensor] = {}
    for name, tensor in named.items():
        name = name.removeprefix("model.")
        if name.endswith("gate_proj.weight"):
            up = named["model." + name.replace("gate_proj", "up_proj")]
            out[name.replace("gate_proj", "gate_up_proj")] = torch.cat((tensor, up))
        elif not name.endswith(".up_proj.weight"):
            out[name] = tensor
    return out


@configs
def test_logits_and_gradients_of_every_parameter_are_the_same(config: ModelConfig, tmp_path: Path):
    theirs, ours = pair(config, tmp_path)
    assert ours.config == config
    tokens = tokens_of(config)
    wanted = theirs(tokens).logits
    logits = ours.lm_head(ours.hidden(tokens))
    assert wanted.std() > 0.5
    assert largest(logits - wanted) <= 2e-5
    for output in (wanted, logits):
        F.cross_entropy(output[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    expected = fused({name: parameter.grad for name, parameter in theirs.named_parameters()})
    got = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        size = largest(expected[name])
        assert size > 1e-4, name
        assert largest(gradient - expected[name]) <= min(2e-5, 1e-4 * size + 1e-7), name


@configs
@pytest.mark.parametrize("kind", [ReferenceDecoder, pytest.param(NativeDecoder, marks=needs_compiler)])
def test_token_by_token_from_the_cache_of_latents_the_logits_are_the_same(
    kind: type[ReferenceDecoder] | type[NativeDecoder], config: ModelConfig, tmp_path: Path
):
    theirs, ours = pair(config, tmp_path)
    tokens = tokens_of(config, rows=1)
    with torch.no_grad():
        wanted = theirs(tokens).logits[0].numpy()
    decoder = kind(config, pages=3)
    decoder.load(export_weights(ours))
    table = np.array([[2, 0, 1]], np.int32)
    assert tokens.shape[1] > 2 * PAGE
    for position, token in enumerate(tokens[0].tolist()):
        one = [np.array([value], np.int32) for value in (token, position, 0)]
        logits = decoder.forward(*one, table, np.zeros(1, np.int32))
        np.testing.assert_allclose(logits[0], wanted[position], atol=2e-5, rtol=0)


@configs
@pytest.mark.parametrize("shard_bytes", [10**9, 60_000], ids=["one file", "shards"])
def test_a_checkpoint_goes_through_us_unchanged(config: ModelConfig, shard_bytes: int, tmp_path: Path):
    theirs, ours = pair(config, tmp_path / "theirs")
    checkpoint.save(ours, tmp_path / "ours", shard_bytes=shard_bytes)
    again, report = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    first, second = theirs.state_dict(), again.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert from_hf(again.config.to_dict()) == config


@pytest.mark.parametrize("name", ["kimi_k2_5", "deepseek_v3", "moonlight_16b_a3b"])
def test_frequencies_and_softmax_scale_of_the_published_shapes_are_the_same(name: str):
    config = load_config(MODELS / f"{name}.yaml").model
    theirs = DeepseekV3Config.from_dict(to_hf(config))
    rotary = modeling.DeepseekV3RotaryEmbedding(theirs)
    with torch.device("meta"):
        scale = modeling.DeepseekV3Attention(theirs, 0).scaling
    assert config.softmax_scale == pytest.approx(scale, rel=1e-12)
    assert rotary.attention_scaling == (config.rope_scaling.rotation_scale if config.rope_scaling else 1.0)
    plain = config.rope_theta ** -(torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    ours = yarn_frequencies(plain, config) if config.rope_scaling else plain
    torch.testing.assert_close(ours.float(), rotary.inv_freq, rtol=2e-6, atol=0)
    cos, sin = rope_tables(config.model_copy(update={"max_position_embeddings": 300}))
    wanted, other = rotary(torch.zeros(1), torch.arange(300)[None])
    assert largest(cos - wanted[0, :, :32]) < 1e-4 and largest(sin - other[0, :, :32]) < 1e-4


def test_their_shards_are_read(tmp_path: Path):
    theirs = reference(CONFIGS["groups"])
    theirs.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    tokens = tokens_of(CONFIGS["groups"])
    with torch.no_grad():
        ours = checkpoint.load(tmp_path)
        torch.testing.assert_close(ours.lm_head(ours.hidden(tokens)), theirs(tokens).logits, atol=2e-5, rtol=0)


def test_the_language_model_of_their_kimi_k25_is_ours(tmp_path: Path):
    """From our files to theirs: their own writer uses other layer names than the published checkpoint."""
    ours = pair(CONFIGS["yarn"], tmp_path / "text")[1]
    checkpoint.save(ours, tmp_path / "kimi", "kimi_k25")
    config = json.loads((tmp_path / "kimi" / "config.json").read_text())
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config |= {"vision_config": {**small, "pos_emb_height": 4, "pos_emb_width": 4}, "projection_hidden_size": 16}
    (tmp_path / "kimi" / "config.json").write_text(json.dumps(config))
    theirs, report = transformers.Kimi_K25ForConditionalGeneration.from_pretrained(
        tmp_path / "kimi", output_loading_info=True
    )
    assert all("vision_tower" in name or "mm_projector" in name for name in report.pop("missing_keys"))
    assert not any(report.values()), report
    tokens = tokens_of(CONFIGS["yarn"])
    with torch.no_grad():
        assert largest(ours.lm_head(ours.hidden(tokens)) - theirs.eval()(tokens).logits) <= 2e-5


def test_bfloat16_weights_are_the_same_bits_and_the_logits_as_close_to_float32_as_theirs(tmp_path: Path):
    config = CONFIGS["yarn"]
    theirs = reference(config).bfloat16()
    for name, buffer in theirs.named_buffers():
        if "correction_bias" in name:
            buffer.data = buffer.data.float()
    theirs.save_pretrained(tmp_path)
    ours = checkpoint.load(tmp_path, torch.bfloat16)
    for name, parameter in fused(dict(theirs.named_parameters())).items():
        assert torch.equal(parameter, ours.get_parameter(name)), name
    tokens = tokens_of(config)
    with torch.no_grad():
        exact = theirs.float()(tokens).logits
        wanted, logits = theirs.bfloat16()(tokens).logits, ours.lm_head(ours.hidden(tokens))
    assert logits.dtype == torch.bfloat16
    assert (logits - exact).abs().mean() < 1.1 * (wanted - exact).abs().mean()
