"""Models whose weights are not drawn, because they are loaded: in memory that nothing touches, or in none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
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


@contextmanager
def outlined() -> Iterator[None]:
    """While it is entered, modules keep their parameters without memory (device ``meta``), and buffers as they are.

    One parameter at a time has memory, while its module makes it. A parameter that two modules share stays one.
    """
    register = nn.Module.register_parameter

    def without_memory(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            known = vars(param)
            if "outline" not in known:
                known["outline"] = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
            param = known["outline"]
        register(self, name, param)

    nn.Module.register_parameter = without_memory
    try:
        yield
    finally:
        nn.Module.register_parameter = register
