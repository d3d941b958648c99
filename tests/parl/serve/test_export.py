"""``parl export``: transformers loads the folder, with the policy's model and tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from seeing import PAD, VISION, a_picture, seeing_model, seeing_policy, with_pictures
from tiny import random_policy, tiny_model
from typer.testing import CliRunner

from model.chat.kimi import render
from model.chat.kimi_tools import declare_tools
from model.decoder import export_weights
from model.kimi import int4
from model.kimi.config import ModelConfig
from model.kimi.files import checkpoint
from model.kimi.files.export import with_latent_eps
from model.kimi.transformer import Transformer
from model.kimi.vision.media import MediaBatch, picture
from model.policy_files import save_policy
from model.tokenizer.tokenizer import Tokenizer
from parl.cli.main import app
from parl.errors import UserError
from parl.serve.export import export

CASES = Path(__file__).parents[2] / "data" / "kimi" / "chat_cases.jsonl"
YARN = {"factor": 8.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 1.0}
CONFIGS = {
    "the quickstart's kind": tiny_model(hidden_size=64, moe_intermediate_size=32),
    "yarn and groups": tiny_model(rope_scaling=YARN, n_routed_experts=8, n_group=4, topk_group=2),
    "no query latent": tiny_model(q_lora_rank=None, latent_norm_eps=1e-4),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def run_of(folder: Path, config: ModelConfig, tokenizer: Tokenizer) -> tuple[Path, Transformer]:
    """A run's folder with a trained policy in it, and that policy."""
    model = random_policy(config)
    save_policy(folder / "policy", config, export_weights(model), tokenizer, {"step": 1})
    return folder, model


def logits_of(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.lm_head(model.hidden(tokens))


def tokens_of(config: ModelConfig) -> torch.Tensor:
    return torch.randint(config.vocab_size, (2, 60), generator=torch.Generator().manual_seed(0))


@configs
def test_transformers_loads_the_folder_and_has_the_same_logits(
    config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
):
    transformers = pytest.importorskip("transformers", minversion="5.13", reason="the reference is not installed")
    run, ours = run_of(tmp_path, config, tokenizer)
    out = export(run)
    assert out == run / "hf"
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert type(theirs).__name__ == "DeepseekV3ForCausalLM"
    assert not told["missing_keys"] and not told["unexpected_keys"]
    tokens = tokens_of(config)
    with torch.no_grad():
        wanted = theirs.eval()(tokens).logits
    assert (logits_of(ours, tokens) - wanted).abs().max() < 2e-5  # 4.1e-6 measured, where logits reach 5
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == tokenizer.special["<|im_end|>"]


@configs
@pytest.mark.parametrize("format", ["hf", "kimi_k25"])
def test_what_is_exported_loads_here_as_the_same_function(
    config: ModelConfig, format: str, tokenizer: Tokenizer, tmp_path: Path
):
    run, ours = run_of(tmp_path, config, tokenizer)
    again = checkpoint.load(export(run, format=format))
    tokens = tokens_of(config)
    assert (logits_of(ours, tokens) - logits_of(again, tokens)).abs().max() < 2e-5
    assert again.config.latent_eps == 1e-6  # what every reader of the format computes with


def test_another_epsilon_of_the_latents_is_another_function_unless_the_matrices_follow():
    config = tiny_model(latent_norm_eps=1e-2)
    changed, followed = random_policy(config), random_policy(config)
    tokens = tokens_of(config)
    wanted = logits_of(random_policy(config), tokens)
    with_latent_eps(followed, 1e-6)
    for block in changed.blocks():
        block.self_attn.q_a_layernorm.eps = block.self_attn.kv_a_layernorm.eps = 1e-6
    assert (logits_of(followed, tokens) - wanted).abs().max() < 2e-5
    assert (logits_of(changed, tokens) - wanted).abs().max() > 1e-2


def test_config_json_says_what_inference_servers_ask_for(tokenizer: Tokenizer, tmp_path: Path):
    run, _ = run_of(tmp_path, tiny_model(), tokenizer)
    tree = json.loads((export(run, dtype="bfloat16") / "config.json").read_text())
    wanted = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "dtype": "bfloat16",
        "eos_token_id": tokenizer.special["<|im_end|>"],
        "pad_token_id": tokenizer.special["[PAD]"],
    }
    assert {key: tree[key] for key in wanted} == wanted
    kimi = json.loads((export(run, format="kimi_k25") / "config.json").read_text())
    assert kimi["architectures"] == ["KimiK25ForConditionalGeneration"]
    assert kimi["text_config"]["topk_method"] == "noaux_tc"


def test_int4_packs_the_routed_experts_and_loads_again(tokenizer: Tokenizer, tmp_path: Path):
    run, ours = run_of(tmp_path, CONFIGS["the quickstart's kind"], tokenizer)
    out = export(run, format="kimi_k25", int4=True)
    assert out.name == "kimi_k25-int4"
    again = checkpoint.load(out)
    for one, two in zip(ours.blocks()[1:], again.blocks()[1:], strict=True):
        for name in ("gate_up_proj", "down_proj"):
            matrices = getattr(one.mlp.experts, name)
            wanted = torch.stack([int4.dequantize(*int4.quantize(matrix)) for matrix in matrices])
            assert torch.equal(getattr(two.mlp.experts, name), wanted)


@pytest.mark.parametrize("int4", [False, True])
def test_a_policy_that_sees_is_exported_as_kimi_k25(int4: bool, tokenizer: Tokenizer, tmp_path: Path):
    pytest.importorskip("PIL", reason="pictures: pip install -e '.[vision]'")
    wide = {"hidden_size": 64, "moe_intermediate_size": 32, "vision": VISION | {"text_hidden_size": 64}}
    config = seeing_model(**wide, quantize_experts="int4" if int4 else None)
    ours = seeing_policy(config)
    save_policy(tmp_path / "policy", config, export_weights(ours), tokenizer, {"step": 1})
    with pytest.raises(UserError, match="no place for its vision side: give --format kimi_k25"):
        export(tmp_path)
    out = export(tmp_path, format="kimi_k25", int4=int4)
    tree = json.loads((out / "config.json").read_text())
    assert tree["media_placeholder_token_id"] == PAD and tree["vision_config"]["vt_hidden_size"] == 32
    again = checkpoint.load(out)
    assert again.config.vision == config.vision
    tokens, media = with_pictures([[1, 2], a_picture(1), [3, 4]])
    shown = MediaBatch.of([picture(png) for _, png in media])
    with torch.no_grad():
        one, two = (m.lm_head(m.hidden(torch.tensor([tokens]), media=shown)) for m in (ours, again))
    assert (one - two).abs().max() < 2e-5


def test_transformers_loads_an_exported_policy_that_sees(tokenizer: Tokenizer, tmp_path: Path):
    transformers = pytest.importorskip("transformers", minversion="5.13", reason="the reference is not installed")
    if not hasattr(transformers, "Kimi_K25ForConditionalGeneration"):
        pytest.skip("this transformers has no kimi_k25")
    config = seeing_model()
    save_policy(tmp_path / "policy", config, export_weights(seeing_policy(config)), tokenizer, {"step": 1})
    out = export(tmp_path, format="kimi_k25")
    _, told = transformers.Kimi_K25ForConditionalGeneration.from_pretrained(out, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_transformers_tokenizer_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path):
    transformers = pytest.importorskip("transformers", minversion="5.13", reason="the reference is not installed")
    run, _ = run_of(tmp_path, tiny_model(), tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(export(run))
    text = render([{"role": "user", "content": "Report the mass of Karona, 42 and 7."}], thinking=False)
    ids = tokenizer.encode(text, allow_special=True)
    assert theirs.encode(text, add_special_tokens=False) == ids
    assert theirs.decode(ids) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.special["<|im_end|>"], tokenizer.special["[PAD]"])


def test_the_chat_template_writes_all_reference_conversations(tokenizer: Tokenizer, tmp_path: Path):
    transformers = pytest.importorskip("transformers", minversion="5.13", reason="the reference is not installed")
    run, _ = run_of(tmp_path, tiny_model(), tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(export(run))
    cases = [json.loads(line) for line in CASES.read_text(encoding="utf-8").split("\n") if line]
    for case in cases:
        tools = case["tools"]
        declared = {"tools": tools, "tools_ts_str": declare_tools(tools)} if tools else {}
        text = theirs.apply_chat_template(case["messages"], tokenize=False, **declared, **case["kwargs"])
        assert text == case["text"], case["name"]
    with pytest.raises(Exception, match="declare_tools"):
        theirs.apply_chat_template([{"role": "user", "content": "q"}], tools=cases[0]["tools"] or [{}], tokenize=False)


def test_the_command_writes_and_says_where(tokenizer: Tokenizer, tmp_path: Path):
    run, _ = run_of(tmp_path / "run", tiny_model(), tokenizer)
    done = CliRunner().invoke(app, ["export", str(run), "--format", "kimi_k25", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0 and str(tmp_path / "out") in done.stdout
    assert checkpoint.load(tmp_path / "out").config.hidden_size == 32
    done = CliRunner().invoke(app, ["export", str(run), "-o", str(tmp_path / "out")])
    assert done.exit_code == 2 and "not empty" in done.stderr


def test_mistakes_are_named(tokenizer: Tokenizer, tmp_path: Path):
    with pytest.raises(UserError, match="no policy in"):
        export(tmp_path / "nothing")
    run, _ = run_of(tmp_path, tiny_model(), tokenizer)
    with pytest.raises(UserError, match="--format gguf: must be one of hf, kimi_k25"):
        export(run, format="gguf")
    with pytest.raises(UserError, match="16 inputs has no whole groups of 32"):
        export(run, int4=True)
    (run / "policy" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read"):
        export(run, out=tmp_path / "other")
