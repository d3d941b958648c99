"""Policies of the family on disk: Hugging Face folders, by transformers itself, and a run's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from model.files import write_text
from model.hf.build import check_numbers, stored_model
from model.hf.policy import HfPolicy
from model.hf.shape import HfShape, read_shape
from model.json_file import read_json
from model.policy_files import INDEX, pickled
from model.policy_read import SINGLE, load_weights


def load(folder: Path) -> HfPolicy:
    """The policy in ``folder``. FileNotFoundError and ValueError name the file and the tensor that is wrong."""
    shape: HfShape = read_shape(folder)
    if not any((folder / name).exists() for name in (SINGLE, INDEX)):
        raise FileNotFoundError(f"{folder} is no policy: it lacks {SINGLE}{pickled(folder)}")
    if "model_type" in read_json(folder / "config.json", finite=False):
        policy = HfPolicy(shape, stored_model(shape, folder))
    else:
        policy = HfPolicy(shape)
        load_weights(policy, folder)
    check_numbers(policy.causal, policy.hidden)
    return policy


def write_folder(
    policy: HfPolicy,
    tokenizer: Any,
    out: Path,
    stops: tuple[int, ...],
    *,
    format: str = "hf",
    dtype: str | None = None,
    int4: bool = False,
    shard_bytes: int = 5 * 10**9,
    **_: Any,
) -> None:
    """Write ``policy`` to ``out`` as ``from_pretrained`` reads it, with its tokenizer.

    ``stops``: ids that end a turn. ``dtype``: cast ``policy`` on the way; None: its own. ``shard_bytes``: the largest
    file. ValueError for a ``format`` that is not transformers' own.
    """
    if format != "hf" or int4:
        raise ValueError(f"--format {format}{' --int4' * int4}: a policy of the family hf is written by transformers")
    causal, kind = policy.causal, getattr(torch, dtype or policy.config.dtype)
    for parameter in causal.parameters():  # not buffers: balancing moves them by less than bfloat16 can tell
        parameter.data = parameter.data.to(kind)
    causal.config.dtype = kind
    causal.save_pretrained(out, max_shard_size=shard_bytes)
    tokenizer.save(out)
    file = out / "generation_config.json"
    tree = read_json(file) if file.exists() else {}
    ends = tree.get("eos_token_id")
    ends = [ends] if isinstance(ends, int) else ends or []
    tree["eos_token_id"] = [*stops, *(index for index in ends if index not in stops)]
    write_text(file, json.dumps(tree, indent=2) + "\n")
