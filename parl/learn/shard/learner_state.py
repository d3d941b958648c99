"""A learner's state as named tensors: ``weights/NAME``, and ``optimizer/KEY/NAME``.

Names are the parameters', so the state does not depend on the number of ranks. If every rank holds all of it,
each writes a share; if a rank holds a range of a tensor, it writes that
(:class:`parl.learn.shard.parts.Piece`).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from model.arrays import to_numpy
from model.decoder import Weights
from parl.learn.shard.parts import Part, PartsReader, Piece, write_part


def whole_pieces(model: nn.Module, optimizer: torch.optim.Optimizer, without: Collection[str] = ()) -> list[Piece]:
    """Parameters, persistent buffers and the optimiser's state, all whole, in one order on every rank.

    ``without``: names left out of checkpoints.
    """
    pieces = [Piece.whole(f"weights/{name}", tensor) for name, tensor in _kept(model, without).items()]
    for name, parameter in model.named_parameters():
        for key, value in sorted(optimizer.state.get(parameter, {}).items()):
            tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.int64)
            pieces.append(Piece.whole(f"optimizer/{key}/{name}", tensor))
    return pieces


def share_of(pieces: list[Piece], rank: int, ranks: int) -> list[Piece]:
    """The pieces that ``rank`` writes of a state on all ranks: largest first, to the least loaded rank."""
    loads, mine = [0] * ranks, []
    for piece in sorted(pieces, key=lambda piece: -piece.values.nbytes):
        owner = loads.index(min(loads))
        loads[owner] += piece.values.nbytes
        if owner == rank:
            mine.append(piece)
    return mine


@torch.no_grad()
def restore(
    model: nn.Module, optimizer: torch.optim.Optimizer, reader: PartsReader, without: Collection[str] = ()
) -> None:
    """Load weights and optimiser from ``reader``; ValueError if they are another model's."""
    state, names = _kept(model, without), dict(model.named_parameters())
    here = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_shapes(str(reader.folder), weight_shapes(reader), here)
    for name, tensor in state.items():
        tensor.copy_(reader.read(f"weights/{name}"))
    optimizer.state.clear()
    for full in reader.names():
        kind, _, rest = full.partition("/")
        if kind == "optimizer":
            key, _, name = rest.partition("/")
            value = reader.read(full)
            scalar = value.dtype == torch.int64 and value.dim() == 0  # counters are Python's
            parameter = names[name]
            optimizer.state[parameter][key] = int(value) if scalar else value.to(parameter.device)


def saved_weights(folder: Path, dtype: str = "float32") -> Weights:
    """The policy in the checkpoint ``folder``: trained weights in ``dtype``, the rest in float32."""
    reader = PartsReader(folder)
    names = [name.removeprefix("weights/") for name in reader.names() if name.startswith("weights/")]
    trained = {name.split("/", 2)[2] for name in reader.names() if name.startswith("optimizer/")}
    kinds = dict.fromkeys(trained, getattr(torch, dtype))
    return {name: to_numpy(reader.read(f"weights/{name}").to(kinds.get(name, torch.float32))) for name in names}


def _kept(model: nn.Module, without: Collection[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name not in without}


def weight_shapes(reader: PartsReader) -> dict[str, tuple[int, ...]]:
    """Of all weights in ``reader``, by the model's names."""
    return {name.removeprefix("weights/"): shape for name, shape in reader.shapes.items() if name[:8] == "weights/"}


def check_shapes(source: str, there: dict[str, tuple[int, ...]], here: dict[str, tuple[int, ...]]) -> None:
    """ValueError if ``source`` holds other weights than the model."""
    wrong = [name for name in sorted(here.keys() | there) if there.get(name) != here.get(name)]
    if wrong:
        name = wrong[0]
        raise ValueError(f"{source} is another model's: {name} is {there.get(name)} there, {here.get(name)} here")


class Snapshot:
    """A rank's part of the state in host memory, to be written while training continues."""

    def __init__(self, pieces: list[Piece], rank: int, ranks: int) -> None:
        self._pieces = [piece.copy() for piece in pieces]
        self._rank, self._ranks = rank, ranks
        self.bytes = sum(piece.values.nbytes for piece in self._pieces)

    def write(self, folder: Path) -> Part:
        """Write the part into ``folder``."""
        return write_part(folder, self._rank, self._ranks, self._pieces)
