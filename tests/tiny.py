"""The smallest policy with every part, for tests: three layers (two with experts), a few thousand weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
import torch

from model.decoder import Weights, export_weights
from model.kimi.config import ModelConfig
from model.kimi.transformer import Transformer
from parl.config.schema import Config

VOCAB = 800
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "max_position_embeddings": 1024,
}
# other code paths of the kernels: one shared and four grouped heads, widths that fill no vector, values wider than keys
ODD_SHAPE: dict[str, Any] = SHAPE | {
    "vocab_size": 75,
    "hidden_size": 40,
    "num_attention_heads": 5,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 14,
    "n_routed_experts": 5,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 24,
    "intermediate_size": 22,
    "routed_scaling_factor": 1.7,
    "norm_topk_prob": False,
    "max_position_embeddings": 256,
}


def tiny_model(**changes: Any) -> ModelConfig:
    """The tiny policy's shape."""
    return ModelConfig(**{**SHAPE, **changes})


def random_policy(config: ModelConfig, seed: int = 0) -> Transformer:
    """A policy whose logits differ widely, with non-neutral gains and correction biases."""
    torch.manual_seed(seed)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
        model.embed_tokens.weight.normal_()
        for router in model.routers():
            router.e_score_correction_bias.normal_(std=0.1)
    return model.eval()


def random_weights(config: ModelConfig, seed: int = 0) -> Weights:
    """:func:`random_policy` as engines take it."""
    return export_weights(random_policy(config, seed))


def tiny_config(root: Path, **sections: dict[str, Any]) -> Config:
    """A run in ``root`` on a small world with the tiny policy, merged with ``sections``."""
    tree: dict[str, Any] = {
        "name": "tiny",
        "root": root,
        "model": SHAPE,
        "tokenizer": {"vocab_size": VOCAB},
        "envs": {"config": {"entities": 120, "widths": (2, 4)}},
        "trainer": {"most_unread": 1.0},  # nobody has taught these policies anything
        "tracking": {"wandb": "offline"},
    }
    for name, section in sections.items():
        tree[name] = {**tree[name], **section} if isinstance(tree.get(name), dict) else section
    return Config.model_validate(tree)


def joining() -> dict[str, str]:
    """Variables with which another process joins this one's Ray: its address on loopback and its token."""
    own = {name: os.environ[name] for name in ("RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")}
    return own | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_AUTH_MODE": "token"}
