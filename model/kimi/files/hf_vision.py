"""Convert the vision part of a ``kimi_k25`` ``config.json`` to and from our shape. No torch.

Two spellings are read: the published one (``vt_hidden_size``), used by inference engines, and transformers'
(``hidden_size``). Both are written. Keys that affect the numbers are converted or refused.
"""

from __future__ import annotations

from typing import Any

from model.kimi.vision.config import VisionConfig

PLACEHOLDER_ID = 163_605  # Kimi's id of <|media_pad|>

_PUBLISHED = {  # our name, as in transformers, and the published one
    "patch_size": "patch_size",
    "pos_emb_height": "init_pos_emb_height",
    "pos_emb_width": "init_pos_emb_width",
    "pos_emb_time": "init_pos_emb_time",
    "num_hidden_layers": "vt_num_hidden_layers",
    "hidden_size": "vt_hidden_size",
    "intermediate_size": "vt_intermediate_size",
    "num_attention_heads": "vt_num_attention_heads",
    "merge_kernel_size": "merge_kernel_size",
    "text_hidden_size": "text_hidden_size",
}
_ONLY = {  # the only value that we support of each; absent means this one
    "hidden_act": "gelu_pytorch_tanh",
    "pos_emb_type": "divided_fixed",
    "merge_type": "sd2_tpool",
    "video_attn_type": "spatial_temporal",
    "mm_projector_type": "patchmerger",
    "projector_hidden_act": "gelu",
}


def vision_from_hf(hf: dict[str, Any]) -> dict[str, Any]:
    """Our ``vision`` and ``media_placeholder_token_id`` from a ``kimi_k25`` ``config.json``; else empty.

    An absent key has K2.5's value, as in transformers. ValueError names key and value.
    """
    given = hf.get("vision_config")
    if not given:
        return {}
    if not isinstance(given, dict) or not isinstance(given.get("rope_parameters") or {}, dict):
        raise ValueError("vision_config must be an object, and so must its rope_parameters")
    for key, value in _ONLY.items():
        if given.get(key, value) != value:
            raise ValueError(f"vision_config.{key}={given[key]!r} is not supported, only {value!r} is")
    values: dict[str, Any] = {"text_hidden_size": hf["text_config"].get("hidden_size")}
    for ours, published in _PUBLISHED.items():
        values |= _one(ours, given, (published, ours), "vision_config.")
    values |= _one("projection_layer_norm_eps", {**hf, **given}, ("projector_ln_eps", "projection_layer_norm_eps"))
    values |= _one("rope_theta", given.get("rope_parameters") or {}, ("rope_theta",), "vision_config.rope_parameters.")
    width = values.get("hidden_size", VisionConfig.model_fields["hidden_size"].default)
    for key, where in (("mm_hidden_size", given), ("projection_hidden_size", hf)):
        if where.get(key, width) != width:
            raise ValueError(f"{key}={where[key]!r} is not supported: the projector reads the tower's {width} values")
    names = ("media_placeholder_token_id", "image_token_id")
    placeholder = {"media_placeholder_token_id": PLACEHOLDER_ID} | _one("media_placeholder_token_id", hf, names)
    return {"vision": values, **placeholder}


def _one(ours: str, given: dict[str, Any], names: tuple[str, ...], where: str = "") -> dict[str, Any]:
    """The value under one of ``names``, or under several if equal."""
    found = {name: given[name] for name in names if given.get(name) is not None}
    values = [list(value) if isinstance(value, (list, tuple)) else value for value in found.values()]
    if any(value != values[0] for value in values):
        shown = ", ".join(f"{where}{name}={value!r}" for name, value in found.items())
        raise ValueError(f"{shown}: two spellings of one value must agree")
    return {ours: values[0]} if values else {}


def vision_to_hf(vision: VisionConfig, placeholder: int, vocab_size: int) -> dict[str, Any]:
    """The keys of a ``kimi_k25`` ``config.json`` besides ``text_config``, in both spellings."""
    values = vision.model_dump(mode="json")
    section = {published: values[ours] for ours, published in _PUBLISHED.items()}
    section |= {ours: values[ours] for ours in _PUBLISHED}
    section |= _ONLY | {
        "mm_hidden_size": vision.hidden_size,
        "projector_ln_eps": vision.projection_layer_norm_eps,
        "rope_parameters": {"rope_type": "axial", "rope_theta": vision.rope_theta},
    }
    return {
        "vision_config": section,
        "projection_hidden_size": vision.hidden_size,
        "projection_layer_norm_eps": vision.projection_layer_norm_eps,
        "media_placeholder_token_id": placeholder,
        "image_token_id": placeholder,
        "video_token_id": vocab_size,  # transformers requires one; K2.5 has no token for video chunks
        "use_unified_vision_chunk": True,
    }
