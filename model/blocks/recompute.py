"""Activation recomputation: a layer keeps its input and is computed again in the backward pass.

Counters of a layer (the experts' load, the largest logits) count in the first pass only
(:func:`recomputing`). Routes are an argument of the layer, so both passes use the same ones; live choices are
computed from the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

_depth = 0  # second passes under way


def recomputing() -> bool:
    """Whether a layer runs for the second time."""
    return _depth > 0


class _SecondPass(AbstractContextManager):
    def __enter__(self) -> None:
        global _depth
        _depth += 1

    def __exit__(self, *raised: object) -> None:
        global _depth
        _depth -= 1


def recomputed(function: Callable[..., Tensor], *args: Any) -> Tensor:
    """``function(*args)``, saving only its arguments.

    The second pass runs to its end, not only to the last tensor needed: other ranks may wait for an exchange.
    """
    return checkpoint(
        function,
        *args,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _SecondPass()),
        preserve_rng_state=False,  # nothing in a layer is random
        early_stop=False,
    )
