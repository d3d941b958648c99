"""Map the tensors of a ``deepseek_v3`` or ``kimi_k25`` checkpoint to our state dict.

Names agree up to a prefix. Files hold gate and up separately, and a matrix per expert; ours are one matrix,
gate first, and stacked experts. The vision tower's queries, keys and values are one matrix in the files.
Shapes: E experts, I width of the feed-forward part, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from model.kimi.config import ModelConfig
from model.kimi.files.vision_checkpoint import from_published, to_published
from model.kimi.transformer import Transformer

PREFIXES = {"hf": "", "kimi_k25": "language_model."}
VISION = ("vision_tower.", "mm_projector.")  # the rest of a kimi_k25 checkpoint
OURS = "vision."  # the same in our names
# How transformers 5.23 writes some of kimi_k25's tensors: it inverts its renaming of published names wrongly.
_AS_WRITTEN = {
    "language_model.model.blocks.": "language_model.model.layers.",
    "vision_tower.encoder.patch_embed.": "vision_tower.patch_embed.",
    "model.mm_projector.": "mm_projector.",
}

Shape = tuple[int, ...]


class Slot(NamedTuple):
    """A file's tensor as a part of one of ours: all of it, some rows, or an expert's rows.

    ``parts``: for the vision tower, all our tensors that it is converted to and from; then it is not a view.
    """

    name: str
    shape: Shape
    expert: int | None = None
    start: int = 0
    parts: tuple[str, ...] = ()

    def of(self, ours: Tensor) -> Tensor:
        """The part, as a view of our tensor ``name``."""
        part = ours if self.expert is None else ours[self.expert]
        return part[self.start : self.start + self.shape[0]]


def published_name(name: str) -> str:
    """The published name of a tensor of a file that transformers wrote; any other name as it is."""
    for written, published in _AS_WRITTEN.items():
        if name.startswith(written):
            return published + name.removeprefix(written)
    return name


def our_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of our state dict; allocates nothing."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}


def layout(config: ModelConfig, prefix: str = "") -> dict[str, Slot]:
    """File name of a tensor -> its slot, in the order of the layers, vision last."""
    slots: dict[str, Slot] = {}
    shapes = our_shapes(config)
    for name, shape in shapes.items():
        if name.startswith(OURS):
            continue
        theirs = prefix + (name if name.startswith("lm_head.") else f"model.{name}")
        slots |= dict(_split(theirs, name, shape))
    return slots | _vision_layout(config, shapes)


def _vision_layout(config: ModelConfig, shapes: dict[str, Shape]) -> dict[str, Slot]:
    """The published tensors of the vision tower, as shapes without memory."""
    if config.vision is None:
        return {}
    with torch.device("meta"):
        state = {name.removeprefix(OURS): torch.empty(s) for name, s in shapes.items() if name.startswith(OURS)}
        published = to_published(state, config.vision)
    slots: dict[str, Slot] = {}
    for name, tensor in published.items():
        parts = tuple(OURS + part for part in from_published({name: tensor}, config.vision))
        slots[name] = Slot(parts[0], tuple(tensor.shape), parts=parts)
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
