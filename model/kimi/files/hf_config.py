"""Convert ``config.json`` of ``deepseek_v3`` and ``kimi_k25`` to and from our shape. No torch.

Keys that affect the numbers are converted or refused; all others (token ids, training losses, versions) are
ignored. Two keys are handled in :mod:`model.kimi.files.checkpoint`: ``quantization_config``, and
``num_nextn_predict_layers``, whose extra layers are not built.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.json_file import read_json
from model.kimi.config import ModelConfig, YarnScaling
from model.kimi.files.hf_vision import vision_from_hf, vision_to_hf

TEXT_TYPES = ("deepseek_v3", "kimi_k2")  # kimi_k2 (K2, K2.6) is the same architecture by another name
LATENT_NORM_EPS = 1e-6  # of DeepSeek's and transformers' code: latents' norms do not use rms_norm_eps

_SAME = (
    "vocab_size", "hidden_size", "num_hidden_layers", "first_k_dense_replace", "intermediate_size",
    "num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size", "n_group", "topk_group",
    "routed_scaling_factor", "norm_topk_prob", "rms_norm_eps", "max_position_embeddings", "initializer_range",
)  # fmt: skip
_ONLY: dict[str, Any] = {  # the only value that we support of each; absent means this one
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0,
    "tie_word_embeddings": False,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
}
# of the initialisation, and one constant: written only if they differ from HF's code
_OURS = ("embedding_range", "embedding_mean", "latent_norm_eps", "look_back", "quantize_experts")


def read_shape(folder: str | Path) -> ModelConfig:
    """The shape of the policy in ``folder``: Hugging Face's ``config.json``, or a run's (no model_type).

    FileNotFoundError and ValueError name the file, the key and the unsupported value.
    """
    file = Path(folder) / "config.json"
    tree = read_json(file)
    try:
        return from_hf(tree) if "model_type" in tree else _validated(tree)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def text_section(hf: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a ``config.json``: all of it, or ``text_config`` of ``kimi_k25``."""
    kind = hf.get("model_type")
    if kind == "kimi_k25":
        text = hf.get("text_config")
        if not isinstance(text, dict):
            raise ValueError(f"text_config={text!r}: a kimi_k25 config.json holds the language model's there")
        if hf.get("tie_word_embeddings"):
            raise ValueError("tie_word_embeddings=true is not supported: embedding and head are two matrices")
        if text.get("model_type", "deepseek_v3") not in TEXT_TYPES:
            raise ValueError(f"text_config.model_type={text['model_type']!r} is not supported, only {TEXT_TYPES} are")
        return {"model_type": "deepseek_v3", **text}
    if kind not in TEXT_TYPES:
        known = ", ".join((*TEXT_TYPES, "kimi_k25"))
        raise ValueError(f"model_type={kind!r} is not supported, only {known} are; model.family=hf reads others")
    return hf


def from_hf(hf: dict[str, Any]) -> ModelConfig:
    """The shape in a ``config.json``; ValueError names the key and the unsupported value."""
    text = text_section(hf)
    for key, value in _ONLY.items():
        if text.get(key, value) != value:
            raise ValueError(f"{key}={text[key]!r} is not supported, only {value!r} is")
    heads = text.get("num_key_value_heads")
    if heads is not None and heads != text.get("num_attention_heads"):
        raise ValueError(
            f"num_key_value_heads={heads!r} is not supported: latent attention has one for each of the"
            f" num_attention_heads={text.get('num_attention_heads')!r}"
        )
    missing = [key for key in _SAME if key not in text]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}: write every key of the shape out")
    values = {key: text[key] for key in _SAME} | _rotary(text)
    values |= {key: 1 for key in ("n_group", "topk_group") if values[key] is None}
    # HF initialises embeddings like any matrix; a checkpoint overwrites them anyway
    spread = text["initializer_range"]
    values |= _assumed(spread)
    values |= {key: text[key] for key in _OURS if key in text}
    if hf.get("model_type") == "kimi_k25":
        values |= vision_from_hf(hf)
    return _validated(values)


def _validated(values: dict[str, Any]) -> ModelConfig:
    """Validate strictly, as a configuration: ``"4"``, ``4.0`` and ``true`` are no numbers of layers."""
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key}={value!r} must be a finite number")
    try:
        return ModelConfig.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ValueError("; ".join(_explained(dict(detail)) for detail in error.errors())) from None


def _assumed(spread: float) -> dict[str, Any]:
    """HF's values of our own keys; without a mean, look-back changes nothing."""
    start = {"embedding_range": spread, "embedding_mean": 0.0, "look_back": True}
    return start | {"latent_norm_eps": LATENT_NORM_EPS, "quantize_experts": None}


def _explained(detail: dict[str, Any]) -> str:
    key = ".".join(map(str, detail["loc"]))
    return f"{key}={detail['input']!r}: {detail['msg']}" if key else detail["msg"]


def _rotary(text: dict[str, Any]) -> dict[str, Any]:
    """The rotary keys, as published (``rope_theta``, ``rope_scaling``) or in transformers 5's form."""
    given: dict[str, Any] = {}
    for name in ("rope_scaling", "rope_parameters"):
        section = text.get(name)
        if section is not None and not isinstance(section, dict):
            raise ValueError(f"{name}={section!r} must be an object or null")
        given |= section or {}
    theta = given.get("rope_theta", text.get("rope_theta"))
    if theta is None:
        raise ValueError("config.json lacks rope_theta")
    values: dict[str, Any] = {"rope_theta": theta, "rope_interleave": text.get("rope_interleave", True) is not False}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return values
    if kind != "yarn":
        raise ValueError(f"rope_scaling.type={kind!r} is not supported, only 'yarn' is")
    for key, only in (("attention_factor", None), ("truncate", True)):
        if given.get(key, only) != only:
            raise ValueError(f"rope_scaling.{key}={given[key]!r} is not supported, only {only!r} is")
    if given.get("original_max_position_embeddings") is None:
        raise ValueError("rope_scaling lacks original_max_position_embeddings")
    yarn = {key: given[key] for key in YarnScaling.model_fields if given.get(key) is not None}
    longest, original = text["max_position_embeddings"], given["original_max_position_embeddings"]
    for name, length in (("max_position_embeddings", longest), ("original_max_position_embeddings", original)):
        if isinstance(length, bool) or not isinstance(length, int) or not 0 < length < 2**53:
            raise ValueError(f"{name}={length!r} must be a whole number > 0")
    yarn.setdefault("factor", longest / original)
    return {**values, "rope_scaling": yarn}


def to_hf(config: ModelConfig, model_type: str = "deepseek_v3") -> dict[str, Any]:
    """A ``config.json`` from which transformers builds the same model; :func:`from_hf` reads it back.

    ``model_type``: ``deepseek_v3`` (language model only), or ``kimi_k25`` with it in ``text_config``.
    """
    if model_type == "kimi_k25":
        whole = {
            "architectures": ["KimiK25ForConditionalGeneration"],
            "model_type": "kimi_k25",
            "tie_word_embeddings": False,
            "text_config": to_hf(config),
        }
        if config.vision is None or config.media_placeholder_token_id is None:
            return whole
        return whole | vision_to_hf(config.vision, config.media_placeholder_token_id, config.vocab_size)
    if model_type != "deepseek_v3":
        raise ValueError(f"model_type={model_type!r} is not one of deepseek_v3, kimi_k25")
    text = {"architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", **_ONLY}
    text |= {key: getattr(config, key) for key in _SAME}
    text |= {
        "num_key_value_heads": config.num_attention_heads,
        "num_nextn_predict_layers": 0,
        "rope_theta": config.rope_theta,
        "rope_interleave": config.rope_interleave,
        "rope_scaling": None,
    }
    if config.rope_scaling:
        given = {key: value for key, value in config.rope_scaling.model_dump().items() if value}
        text["rope_scaling"] = {"type": "yarn", **given}
    assumed = _assumed(config.initializer_range)
    ours = {key: getattr(config, key) for key in _OURS}
    return text | {key: value for key, value in ours.items() if value != assumed[key]}
