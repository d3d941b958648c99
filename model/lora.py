"""Low-rank adapters (LoRA, arXiv 2106.09685): y = W x + (α / r) · up (down x), with W frozen.

Adapters are forward hooks on linear layers and base weights keep their names, so policies, engines and files
need not know them. :func:`merged` adds their product to the weights of a policy that is served or saved.

Shapes: r rank, I inputs, O outputs of a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.decoder import Weights
from model.policy import Policy

PREFIX = "lora."


class Lora(nn.Module):
    """Adapters of ``names``, the linear layers of ``model``: ``down`` random [r, I], ``up`` zero [O, r].

    Adapters are float32, and compute in the policy's dtype.
    """

    def __init__(self, model: Policy, names: list[str], *, rank: int, alpha: float) -> None:
        super().__init__()
        self.names, self.scale = names, alpha / rank
        layers = [model.get_submodule(name) for name in names]
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        new = {"dtype": torch.float32, "device": linears[0].weight.device}
        self.down = nn.ParameterList(torch.empty(rank, layer.in_features, **new) for layer in linears)
        self.up = nn.ParameterList(torch.zeros(layer.out_features, rank, **new) for layer in linears)
        for index, (layer, down) in enumerate(zip(linears, self.down, strict=True)):
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))  # LoRA's initialisation
            layer.register_forward_hook(self._add(index))

    def _add(self, index: int):
        def add(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            x = inputs[0]
            return out + F.linear(F.linear(x, self.down[index].to(x.dtype)), self.up[index].to(x.dtype)) * self.scale

        return add

    @torch.no_grad()
    def reset(self) -> None:
        """Make the adapters add nothing; ``down`` keeps its values."""
        for up in self.up:
            up.zero_()

    @torch.no_grad()
    def export(self) -> Weights:
        """The adapters as float32 arrays (copies), with α / r multiplied into ``up``; see :func:`merged`."""
        out = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            out[f"{PREFIX}{name}.down"] = down.detach().float().cpu().numpy().copy()
            out[f"{PREFIX}{name}.up"] = (up.detach().float() * self.scale).cpu().numpy()
        return out


def attach(model: Policy, *, rank: int, alpha: float, targets: Collection[str]) -> Lora:
    """Freeze ``model`` and attach adapters to its linear layers in ``targets``, as its module ``lora``.

    ``targets``: names in ``Policy.adapter_owners``. ValueError if it has no such layers.
    """
    owners = tuple(owner for target in targets for owner in model.adapter_owners.get(target, ()))
    names = [
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, owners)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    if not names:
        raise ValueError(f"optimizer.lora.targets={list(targets)}: this model has no such layers")
    model.requires_grad_(False)
    lora = Lora(model, names, rank=rank, alpha=alpha)
    model.lora = lora
    return lora


def is_adapters(weights: Weights) -> bool:
    """Whether these are adapters, not a whole policy."""
    return any(name.startswith(PREFIX) for name in weights)


def merged(base: Weights, adapters: Weights) -> Weights:
    """``base`` with the adapters' products added; ``adapters`` itself if it is a whole policy.

    ValueError if they belong to another model. Arrays without an adapter are those of ``base``; the others
    have its dtypes.
    """
    if not is_adapters(adapters):
        return adapters
    out = dict(base)
    for key, up in adapters.items():
        if not key.endswith(".up"):
            continue
        path = key.removesuffix(".up")
        name, down = path.removeprefix(PREFIX) + ".weight", adapters[f"{path}.down"]
        if name not in base or base[name].shape != (len(up), down.shape[1]):
            raise ValueError(f"adapters for {name} of shape {(len(up), down.shape[1])} do not fit this policy")
        out[name] = (base[name] + up @ down).astype(base[name].dtype)
    return out
