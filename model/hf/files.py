"""Policies of the family on disk: Hugging Face folders, by transformers itself, and a run's own."""

from __future__ import annotations

from pathlib import Path

from model.hf.build import stored_model
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
        return HfPolicy(shape, stored_model(shape, folder))
    policy = HfPolicy(shape)
    load_weights(policy, folder)
    return policy
