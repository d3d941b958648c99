"""A policy on disk: ``model.safetensors``, ``config.json``, ``tokenizer.json`` and ``meta.json`` in one folder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from model.config import ModelConfig
from model.decoder import Weights
from model.tokenizer import Tokenizer


def save_policy(
    folder: Path,
    config: ModelConfig,
    weights: Weights,
    tokenizer: Tokenizer,
    meta: dict[str, Any],
    *,
    dtype: str = "float32",
) -> None:
    """Write a policy; the weights come last and are renamed into place, so a folder with weights is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config.model_dump_json(indent=1) + "\n")
    (folder / "meta.json").write_text(json.dumps(meta, indent=1, default=str) + "\n")
    tokenizer.save(folder / "tokenizer.json")
    tensors = {
        name: torch.from_numpy(array.copy()).to(getattr(torch, dtype)).contiguous() for name, array in weights.items()
    }
    save_file(tensors, folder / "model.safetensors.tmp")
    os.replace(folder / "model.safetensors.tmp", folder / "model.safetensors")


def load_policy(folder: Path) -> tuple[Weights, ModelConfig, Tokenizer, dict[str, Any]]:
    """(weights as float32, config, tokenizer, meta). FileNotFoundError or ValueError name the bad file."""
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} is no policy: it lacks {name}")
    config = ModelConfig.model_validate_json((folder / "config.json").read_text())
    try:
        tensors = load_file(folder / "model.safetensors")
    except SafetensorError as error:
        raise ValueError(f"{folder / 'model.safetensors'} cannot be read: {error}") from error
    weights = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    meta_file = folder / "meta.json"
    meta = json.loads(meta_file.read_text()) if meta_file.exists() else {}
    return weights, config, Tokenizer.load(folder / "tokenizer.json"), meta
