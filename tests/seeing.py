"""The tiny policy with vision: a tower of two layers, and pictures of small tables."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from tiny import SHAPE

from envs.world.site.pictures import draw_table
from model.kimi.config import ModelConfig
from model.kimi.transformer import Transformer
from model.kimi.vision.picture_size import picture_tokens

PAD = 700
VISION: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "pos_emb_height": 8,
    "pos_emb_width": 8,
    "text_hidden_size": SHAPE["hidden_size"],
}


def seeing_model(placeholder: int = PAD, **changes: Any) -> ModelConfig:
    """The tiny policy's shape with a vision section."""
    return ModelConfig(**{**SHAPE, "vision": VISION, "media_placeholder_token_id": placeholder, **changes})


def seeing_policy(config: ModelConfig, seed: int = 0) -> Transformer:
    """A policy whose logits differ widely with tokens and pictures."""
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif "position_embeddings" not in name:
                parameter.copy_(torch.randn_like(parameter) * parameter[0].numel() ** -0.5)
        model.embed_tokens.weight.normal_()
        for router in model.routers():
            router.e_score_correction_bias.normal_(std=0.1)
    return model.eval()


def a_picture(seed: int, rows: int = 2) -> bytes:
    """A picture of ``rows`` x 3 tokens."""
    rng = Random(seed)
    return draw_table([str(rng.randint(10, 99)) for _ in range(rows)], rng)


def with_pictures(parts: list[list[int] | bytes], placeholder: int = PAD) -> tuple[list[int], list[tuple[int, bytes]]]:
    """(tokens, media) of a prompt of tokens and pictures."""
    tokens: list[int] = []
    media: list[tuple[int, bytes]] = []
    for part in parts:
        if isinstance(part, bytes):
            media.append((len(tokens), part))
            tokens += [placeholder] * picture_tokens(part)
        else:
            tokens += part
    return tokens, media
