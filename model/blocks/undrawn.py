"""A model whose weights are not drawn, because they are loaded: its memory is not touched before that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

_DRAWING = (Tensor.normal_, Tensor.uniform_)
_CONSTANT = ("zeros_", "ones_", "constant_")  # of torch.nn.init: everything else there draws


class Undrawn(TorchFunctionMode):
    """While it is entered, drawing into a tensor leaves it as it is; constants (norms, biases) are filled in."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Calls ``func`` unless it draws."""
        named = kwargs or {}
        whole = getattr(func, "__module__", "") == "torch.nn.init" and func.__name__ not in _CONSTANT
        if whole or func in _DRAWING:
            return named["tensor"] if "tensor" in named else args[0]
        return func(*args, **named)
