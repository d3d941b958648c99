"""Where each tensor of a Hugging Face ``deepseek_v3`` or ``kimi_k25`` checkpoint lies in our state dictionary.

Names are theirs up to a prefix. Gate and up are two matrices in the files and one of ours, gate first; the files hold a
matrix for each expert, ours are stacked. Shapes: E experts, I width of the feed-forward part, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from model.config import ModelConfig
from model.transformer import Transformer

PREFIXES = {"hf": "", "kimi_k25": "language_model."}
VISION = ("vision_tower.", "mm_projector.")  # the rest of a kimi_k25 checkpoint

Shape = tuple[int, ...]


class Slot(NamedTuple):
    """A file's tensor as a part of one of ours: all of it, some rows, or an expert's rows."""

    name: str
    shape: Shape
    expert: int | None = None
    start: int = 0

    def of(self, ours: Tensor) -> Tensor:
        """The part, as a view of our tensor ``name``."""
        part = ours if self.expert is None else ours[self.expert]
        return part[self.start : self.start + self.shape[0]]


def our_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of everything in our state dictionary; takes no memory, however large the model."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}


def layout(config: ModelConfig, prefix: str = "") -> dict[str, Slot]:
    """File name of a tensor -> its slot, in the order of the layers."""
    slots: dict[str, Slot] = {}
    for name, shape in our_shapes(config).items():
        theirs = prefix + (name if name.startswith("lm_head.") else f"model.{name}")
        slots |= dict(_split(theirs, name, shape))
    return slots


def _split(theirs: str, name: str, shape: Shape) -> Iterator[tuple[str, Slot]]:
    if ".experts." not in name:
        yield from _gate_and_up(theirs, Slot(name, shape))
        return
    folder, matrix = theirs.rsplit(".", 1)
    for expert in range(shape[0]):
        yield from _gate_and_up(f"{folder}.{expert}.{matrix}.weight", Slot(name, shape[1:], expert))


def _gate_and_up(theirs: str, slot: Slot) -> Iterator[tuple[str, Slot]]:
    if ".gate_up_proj." not in theirs:
        yield theirs, slot
        return
    rows = slot.shape[0] // 2
    half = slot._replace(shape=(rows, *slot.shape[1:]))
    yield theirs.replace("gate_up_proj", "gate_proj"), half
    yield theirs.replace("gate_up_proj", "up_proj"), half._replace(start=rows)
