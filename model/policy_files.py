"""A run's policy folder: ``model.safetensors``, ``config.json`` (shape), ``meta.json`` and the tokenizer.

The folder is renamed into place when complete. ``meta.json`` names the family unless it is the default.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.arrays import fill, to_tensor
from model.decoder import Weights, export_weights
from model.family import Family, Shape, family_of
from model.files import replacing
from model.json_file import read_json
from model.policy import Policy
from model.policy_read import SINGLE
from model.tokenizer.tokenizer import Tokenizer, load_tokenizer

INDEX = "model.safetensors.index.json"
DEFAULT = "model.kimi.family:Kimi"  # family of policies whose meta.json names none
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")


def save_policy(
    folder: Path,
    shape: Shape,
    weights: Weights,
    tokenizer: Tokenizer,
    meta: dict[str, Any],
    *,
    dtype: str | None = None,
) -> None:
    """Write a policy folder atomically. ``dtype`` None: that of the arrays."""
    import torch
    from safetensors.torch import save_file

    kind = getattr(torch, dtype) if dtype else None
    tensors = {name: to_tensor(array).to(kind).contiguous() for name, array in weights.items()}
    home = type(shape).home
    meta = meta if home == DEFAULT else {**meta, "family": home}
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / "config.json").write_text(shape.model_dump_json(indent=1) + "\n")
        (partial / "meta.json").write_text(json.dumps(meta, indent=1, default=str) + "\n")
        tokenizer.save(partial)
        save_file(tensors, partial / SINGLE)


def load_policy(folder: Path, family: Family) -> tuple[Weights, Any, Tokenizer, dict[str, Any]]:
    """(weights, shape, tokenizer, meta). FileNotFoundError or ValueError name the bad file."""
    for name in ("config.json", SINGLE):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} is no policy: it lacks {name}{pickled(folder)}")
    tokenizer, meta = load_tokenizer(folder), meta_of(folder)
    if (home := meta.get("family", DEFAULT)) != family.Shape.home:
        raise ValueError(f"{folder} is a policy of the family {home}, not of {family.Shape.home}: set model.family")
    policy = family.load(folder)
    return export_weights(policy), policy.config, tokenizer, meta


def meta_of(folder: Path) -> dict[str, Any]:
    """The contents of a policy folder's ``meta.json``; empty without one."""
    return read_json(folder / "meta.json", finite=False) if (folder / "meta.json").exists() else {}


def with_weights(shape: Shape, weights: Weights) -> Policy:
    """A policy of ``shape`` with ``weights``, not for training."""
    policy = family_of(shape).blank(shape)
    fill(policy, weights)
    return policy.eval()


def pickled(folder: Path) -> str:
    """A note on pickled weights in ``folder``, which are never read; empty without any."""
    found = next((name for name in _PICKLES if (folder / name).exists()), None)
    return f"; {found} is a pickle, which can run code and is never read: convert it to safetensors" if found else ""
