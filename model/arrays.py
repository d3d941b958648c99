"""Weights between torch and numpy in their own dtype (bfloat16 by ``ml_dtypes``). torch is imported lazily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Sent(dict[str, np.ndarray]):
    """Weights for another process: pickled as views, so that Ray neither copies nor converts them.

    They arrive as a plain dict, whose arrays are read-only if Ray maps them from its store. (Plain pickle
    writes an array of ``ml_dtypes`` byte by byte into its stream.)
    """

    def __reduce__(self) -> tuple[Any, ...]:
        short = {name: array for name, array in self.items() if array.dtype == BFLOAT16}
        return _arrived, ({**self, **{name: array.view(np.uint16) for name, array in short.items()}}, list(short))


def _arrived(arrays: dict[str, np.ndarray], short: list[str]) -> dict[str, np.ndarray]:
    return arrays | {name: arrays[name].view(BFLOAT16) for name in short}


def to_numpy(tensor: Tensor) -> np.ndarray:
    """``tensor`` as an array of the same dtype; shares the memory of a CPU tensor."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(BFLOAT16)
    return tensor.numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    """``array`` as a read-only tensor of the same dtype that shares its memory."""
    import torch

    if array.dtype == BFLOAT16:
        return torch.from_dlpack(np.ascontiguousarray(array).view(np.uint16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def fill(module: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy ``weights`` into the state dict of ``module``, which keeps its dtypes, one tensor at a time.

    ValueError if they belong to another module.
    """
    import torch

    state = module.state_dict()
    odd = sorted(state.keys() ^ weights.keys())
    if odd:
        raise ValueError(f"not the weights of this model: {', '.join(odd[:3])} are missing or unknown")
    with torch.no_grad():
        for name, tensor in state.items():
            array = weights[name]
            if tensor.shape != array.shape:
                raise ValueError(f"weight {name} has shape {array.shape}, here it is {tuple(tensor.shape)}")
            tensor.copy_(to_tensor(array))
