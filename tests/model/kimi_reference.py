"""transformers' ``kimi_k25``, the reference that the vision tests compare with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.kimi.vision.config import VisionConfig

TRANSFORMERS = "the reference implementation: pip install -e '.[dev]'"
TORCHVISION = "transformers' image processor for kimi_k25 needs torchvision"


def shim_torchvision() -> None:
    """Allow importing a torchvision whose compiled operators do not fit this torch.

    transformers imports torchvision if installed, even for the model; picture functions need no such
    operators.
    """
    try:
        import torchvision  # noqa: F401  # pyright: ignore
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    except ImportError:
        pass


def reference_config(config: VisionConfig, **text: Any) -> Any:
    """transformers' configuration of the same vision tower, with a minimal language model, or ``text``."""
    pytest.importorskip("transformers", minversion="5.13", reason=TRANSFORMERS)
    shim_torchvision()
    from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25Config

    own = ("projection_layer_norm_eps", "text_hidden_size", "rope_theta")
    vision = {key: value for key, value in config.model_dump().items() if key not in own}
    vision["rope_parameters"] = {"rope_type": "axial", "rope_theta": config.rope_theta}
    smallest = {
        "model_type": "deepseek_v3", "hidden_size": config.text_hidden_size, "num_hidden_layers": 1, "vocab_size": 8,
        "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 8, "q_lora_rank": 8,
        "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "pad_token_id": None,
    }  # fmt: skip
    return Kimi_K25Config(
        text_config=smallest | text, vision_config=vision, projection_hidden_size=config.hidden_size,
        projection_layer_norm_eps=config.projection_layer_norm_eps, tie_word_embeddings=False,
    )  # fmt: skip


def hugging_face(config: VisionConfig) -> Any:
    """transformers' model without its head."""
    whole = reference_config(config)
    from transformers.models.kimi_k25.modeling_kimi_k25 import Kimi_K25Model

    return Kimi_K25Model(whole).eval()


def vision_parameters(theirs: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in theirs.named_parameters() if not name.startswith("language_model.")}


def processors(image: dict[str, Any] | None = None, video: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """transformers' processors of pictures and videos. All frames are used."""
    pytest.importorskip("transformers", minversion="5.13", reason=TRANSFORMERS)
    shim_torchvision()
    pytest.importorskip("torchvision", reason=TORCHVISION)
    pytest.importorskip("PIL", reason="pictures: pip install -e '.[vision]'")
    from transformers.models.kimi_k25.image_processing_kimi_k25 import Kimi_K25ImageProcessor
    from transformers.models.kimi_k25.video_processing_kimi_k25 import Kimi_K25VideoProcessor

    return Kimi_K25ImageProcessor(**(image or {})), Kimi_K25VideoProcessor(do_sample_frames=False, **(video or {}))
