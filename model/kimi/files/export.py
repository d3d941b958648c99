"""Export a policy as a folder for transformers, vLLM and other readers of their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from model.chat import kimi
from model.files import write_text
from model.kimi.files import checkpoint
from model.kimi.files.hf_config import LATENT_NORM_EPS
from model.kimi.moe import Experts
from model.kimi.transformer import Transformer
from model.tokenizer.tokenizer import KimiTokenizer, Tokenizer

_TEMPLATE = Path(kimi.__file__).with_suffix(".jinja")


def write_folder(
    model: Transformer,
    tokenizer: Tokenizer,
    out: Path,
    *,
    format: str = "hf",
    dtype: str = "float32",
    int4: bool = False,
    latent_eps: float | None = None,
    server: bool = False,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write ``model`` (which is changed), tokenizer and chat template to the empty folder ``out``.

    ``latent_eps``: the epsilon that readers give the latents' norms. None: transformers', or with ``server``
    that of vLLM and SGLang, which use the other norms' epsilon.
    """
    usual = model.config.rms_norm_eps if server else LATENT_NORM_EPS
    with_latent_eps(model, usual if latent_eps is None else latent_eps)
    settle(model)
    matrices = getattr(torch, dtype)
    checkpoint.save(model, out, format, dtype=matrices, int4_experts=int4, shard_bytes=shard_bytes)
    tokens = {
        "bos_token_id": tokenizer.special[kimi.BOS],
        "eos_token_id": tokenizer.special[kimi.IM_END],
        "pad_token_id": tokenizer.special[kimi.PAD],
    }
    _update(out / "config.json", tokens)
    _update(out / "generation_config.json", {**tokens, "do_sample": True, "temperature": 1.0})
    _write_tokenizer(tokenizer, out, model.config.max_position_embeddings)


@torch.no_grad()
def with_latent_eps(model: Transformer, eps: float) -> None:
    """Give the latents' norms another epsilon, and rescale the matrices before them to keep the function.

    x / sqrt(mean(x²) + a) is s·x / sqrt(mean((s·x)²) + b) with s = sqrt(b / a).
    """
    scale = (eps / model.config.latent_eps) ** 0.5
    model.config = model.config.model_copy(update={"latent_norm_eps": eps})
    if scale == 1.0:
        return
    for block in model.blocks():
        attention = block.self_attn
        if model.config.q_lora_rank:
            attention.q_a_proj.weight *= scale
            attention.q_a_layernorm.eps = eps
        attention.kv_a_layernorm.eps = eps
        attention.kv_a_proj_with_mqa.weight[: model.config.kv_lora_rank] *= scale  # not the rotary key


@torch.no_grad()
def settle(model: Transformer) -> None:
    """Give routed experts the values that the model computes with, if it was trained with INT4 experts."""
    for module in model.modules():
        if isinstance(module, Experts):
            for parameter, value in zip((module.gate_up_proj, module.down_proj), module.matrices(), strict=True):
                parameter.copy_(value)


def _write_tokenizer(tokenizer: Tokenizer, out: Path, longest: int) -> None:
    tokenizer.save(out)
    template = {"chat_template": _TEMPLATE.read_text(encoding="utf-8")}
    if not isinstance(tokenizer, KimiTokenizer):  # KimiTokenizer's own file has the rest
        template |= {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": longest,
            "clean_up_tokenization_spaces": False,
            "bos_token": "[BOS]",
            "eos_token": "<|im_end|>",
            "pad_token": "[PAD]",
            "unk_token": "[UNK]",
        }
    _update(out / "tokenizer_config.json", template)


def _update(file: Path, values: dict[str, Any]) -> None:
    tree = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    write_text(file, json.dumps(tree | values, indent=2, ensure_ascii=False) + "\n")
