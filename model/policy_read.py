"""Read a policy's shape and weights from a folder of ``model/policy_files.py``."""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from model.arrays import fill
from model.decoder import check_finite
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


def is_plain(folder: Path) -> bool:
    """Whether ``folder`` is as :func:`save_policy` writes it: one file, whose tensors have the model's names."""
    return (folder / SINGLE).is_file() and "model_type" not in read_json(folder / "config.json", finite=False)


def load(folder: Path, family: Family) -> Policy:
    """A policy of ``family`` as written by :func:`save_policy`."""
    policy = family.blank(family.read_shape(folder))
    load_weights(policy, folder)
    return policy


def load_weights(policy: Policy, folder: Path, beside: Mapping[str, np.ndarray] | None = None) -> None:
    """Load the weights in ``folder`` into ``policy``, one at a time; ValueError names the file and the tensor.

    ``beside``: weights that are not in the folder.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / SINGLE
    try:
        with safe_open(file, "np") as stored:
            fill(policy, ChainMap(dict(beside or {}), _Stored(stored)))  # type: ignore[arg-type]
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


class _Stored(Mapping[str, np.ndarray]):
    """Weights in an open file, read when they are asked for. NotFinite for what is broken."""

    def __init__(self, file: Any) -> None:
        self._file, self._names = file, list(file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._file.get_tensor(name)
        check_finite(name, array)
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
