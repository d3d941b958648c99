"""Read a policy's shape and weights from a folder of ``model/policy_files.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from model.arrays import fill
from model.decoder import check_weights, shapes_of
from model.json_file import read_json

if TYPE_CHECKING:
    from model.family import Family, Shape
    from model.policy import Policy

SINGLE = "model.safetensors"
S = TypeVar("S", bound="Shape")


def read_shape(folder: Path, kind: type[S]) -> S:
    """The shape in a policy's ``config.json``."""
    file = folder / "config.json"
    tree = read_json(file)
    try:
        return kind.model_validate_json(json.dumps(tree), strict=True)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def load(folder: Path, family: Family) -> Policy:
    """A policy of ``family`` as written by :func:`save_policy`."""
    policy = family.policy(family.read_shape(folder))
    load_weights(policy, folder)
    return policy


def load_weights(policy: Policy, folder: Path) -> None:
    """Load the weights in ``folder`` into ``policy``; ValueError names the file and the tensor."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        weights = load_file(folder / SINGLE)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / SINGLE} cannot be read: {error}") from error
    try:
        check_weights(shapes_of(policy), weights)
    except ValueError as error:
        raise ValueError(f"{folder / SINGLE}: {error}") from None
    fill(policy, weights)
