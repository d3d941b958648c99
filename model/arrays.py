"""Weights between torch and numpy, in their own type: numpy's bfloat16 is that of ``ml_dtypes``. torch comes lazily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class Sent(dict[str, np.ndarray]):
    """Weights on their way to another process: pickled as views, so that Ray neither copies nor converts them.

    There they arrive as a plain dict, whose arrays are read-only where Ray maps them from its store. (Pickle itself
    would write an array of ``ml_dtypes`` byte by byte into its stream.)
    """

    def __reduce__(self) -> tuple[Any, ...]:
        short = {name: array for name, array in self.items() if array.dtype == BFLOAT16}
        return _arrived, ({**self, **{name: array.view(np.uint16) for name, array in short.items()}}, list(short))


def _arrived(arrays: dict[str, np.ndarray], short: list[str]) -> dict[str, np.ndarray]:
    return arrays | {name: arrays[name].view(BFLOAT16) for name in short}


def to_numpy(tensor: Tensor) -> np.ndarray:
    """``tensor`` as an array of its own type; shares the memory of a tensor on the CPU."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(BFLOAT16)
    return tensor.numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    """``array`` as a tensor of its own type that shares its memory: only to be read, since the array may be so."""
    import torch

    if array.dtype == BFLOAT16:
        return torch.from_dlpack(np.ascontiguousarray(array).view(np.uint16)).view(torch.bfloat16)
    return torch.from_dlpack(array)


def fill(module: nn.Module, weights: Mapping[str, np.ndarray]) -> None:
    """Copy ``weights`` into everything that the state dict of ``module`` holds, which keeps its types.

    One tensor at a time. ValueError where they are another module's.
    """
    import torch

    state = module.state_dict()
    odd = sorted(state.keys() ^ weights.keys())
    if odd:
        raise ValueError(f"not the weights of this model: {', '.join(odd[:3])} are missing or unknown")
    with torch.no_grad():
        for name, tensor in state.items():
            if tensor.shape != weights[name].shape:
                raise ValueError(f"weight {name} has shape {weights[name].shape}, here it is {tuple(tensor.shape)}")
            tensor.copy_(to_tensor(weights[name]))
