"""Recorded routes in transformers' mixtures of experts: routers that choose what they are told, and count.

A router of transformers returns (logits [T, E], weights [T, K], ids [T, K]). Told other ids, its weights are made again
from the live logits, so that it keeps its gradient. By which formula a class weighs its experts is found out by calling
it once on numbers of our own.

Shapes: T tokens, D hidden, E experts, K experts a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from model.blocks.recompute import recomputing

_CORRECTION = "e_score_correction_bias"
_TRIED = 16  # tokens that a router is tried on


class Choice(NamedTuple):
    """What a router answers, in transformers' order."""

    logits: Tensor
    weights: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class Formula:
    """Weights of chosen experts: softmax or sigmoid of the logits, over their sum or not, times a factor."""

    softmax: bool
    normed: bool
    factor: float = 1.0

    def weights(self, logits_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """[T, K], float32 or float64 as the logits are."""
        logits = logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
        scores = (torch.softmax(logits, dim=-1) if self.softmax else torch.sigmoid(logits)).gather(1, ids_TK)
        return (scores / (scores.sum(-1, keepdim=True) + 1e-20) if self.normed else scores) * self.factor


class Routed:
    """Mixed into a router's class. ``routes_TK``: what the next passes replay; None: nothing."""

    formula: Formula
    load_E: Tensor
    training: bool
    routes_TK: Tensor | None

    def forward(self, x: Tensor, routes_TK: Tensor | None = None) -> Choice:
        """Choose experts, or take those of ``routes_TK`` (a row of -1 = choose)."""
        choice = Choice(*super().forward(x))  # pyright: ignore[reportAttributeAccessIssue]
        if routes_TK is not None:
            ids_TK = torch.where(routes_TK >= 0, routes_TK.to(choice.ids.dtype), choice.ids)
            weights_TK = self.formula.weights(choice.logits, ids_TK).to(choice.weights.dtype)
            choice = Choice(choice.logits, weights_TK, ids_TK)
        if self.training and not recomputing():
            flat = choice.ids.flatten()
            self.load_E.index_add_(0, flat, torch.ones_like(flat, dtype=self.load_E.dtype))
        return choice

    @torch.no_grad()
    def balance(self, rate: float) -> None:
        """Nudge the correction bias, where there is one, against the load; and forget the load."""
        bias = getattr(self, _CORRECTION, None)
        if bias is not None:
            bias += rate * torch.sign(self.load_E.mean() - self.load_E)
        self.load_E.zero_()


def _told(router: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Before the call, and before who watches it: the routes to replay become an argument."""
    return (*inputs, router.routes_TK) if router.routes_TK is not None and len(inputs) == 1 else None


def make_routed(model: nn.Module) -> list[Any]:
    """Let the routers of ``model`` replay; first to last. ValueError where a mixture has none that can."""
    found, formulas = [], {}
    for name, block in _mixtures(model):
        others = [child for key, child in block.named_children() if key != "experts"]
        with torch.device("cpu"), torch.no_grad():
            formulas |= {type(child): _formula(child) for child in others if type(child) not in formulas}
        routers = [child for child in others if formulas[type(child)] is not None]
        if len(routers) != 1:
            raise ValueError(f"{name} ({type(block).__name__}) has no router that recorded routes can be replayed in")
        router: Any = routers[0]
        router.formula, router.routes_TK = formulas[type(router)], None
        place = None if router.weight.is_meta else router.weight.device  # parameters may have no memory, buffers do
        load = torch.zeros(len(router.weight), device=place)
        router.register_buffer("load_E", load, persistent=False)
        router.__class__ = type(f"Routed{type(router).__name__}", (Routed, type(router)), {})
        router.register_forward_pre_hook(_told)
        found.append(router)
    return found


def _mixtures(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(getattr(module, "experts", None), nn.Module):
            yield name, module


def _formula(router: nn.Module) -> Formula | None:
    """By which ``router`` weighs what it chooses; None where it is no router, or weighs otherwise."""
    weight = getattr(router, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2:
        return None
    draw, width = torch.Generator().manual_seed(0), weight.shape[1]
    tensors = dict([*router.named_parameters(), *router.named_buffers()])
    numbers = {name: torch.randn(t.shape, generator=draw) * width**-0.5 for name, t in tensors.items()}
    try:
        answer = functional_call(router, numbers, (torch.randn(_TRIED, width, generator=draw),))
    except (TypeError, RuntimeError):  # it wants to be called otherwise
        return None
    if not isinstance(answer, tuple) or len(answer) != 3:
        return None
    logits, weights, ids = answer
    if logits.shape != (_TRIED, len(weight)) or weights.shape != ids.shape or ids.is_floating_point():
        return None
    for softmax, normed in product((True, False), (True, False)):
        ratio = weights / Formula(softmax, normed).weights(logits, ids)
        factor = float(ratio.mean())
        if bool((ratio / factor - 1).abs().max() < 1e-4):
            return Formula(softmax, normed, round(factor, 5))
    return None
