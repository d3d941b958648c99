"""Router replay in the learner (R3): validation of recorded routes, and metrics during replay.

The engine records routes while it decodes, int16 [T, L, K] with the trace, -1 where it chose none (a stream's
last token, which was never fed): there the learner routes live. The experts' weights always come from the
live scores, so the router keeps its gradient. Replay is a function of the token alone, so recomputed
activations use the same experts.

Shapes: T tokens, L mixture-of-experts layers, K experts per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.blocks.recompute import recomputing
from model.family import Shape
from model.policy import Router
from parl.learn.rows import Row


def check_routes(rows: Iterable[Row], model: Shape) -> None:
    """ValueError if a mixture-of-experts policy's row has no routes, or routes impossible for ``model``."""
    if (routes := model.routes) is None:
        return
    shape = (routes.layers, routes.chosen)
    for row in rows:
        if row.routes is None:
            raise ValueError("a row of a mixture-of-experts policy has no routes: replay would silently be off")
        if row.routes.shape != (len(row.tokens), *shape):
            wanted = [len(row.tokens), *shape]
            raise ValueError(f"{row.key}: routes of shape {list(row.routes.shape)}, this policy's are {wanted}")
        low, high = row.routes.min(initial=0), row.routes.max(initial=0)
        if low < -1 or high >= routes.experts:
            raise ValueError(f"{row.key}: routes from {low} to {high}, experts are 0 to {routes.experts - 1}")
        ordered = np.sort(row.routes, axis=-1)
        if ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any():
            raise ValueError(
                f"{row.key}: a token's routes name an expert twice: they were not recorded, or overwritten"
            )


class RouteWatch:
    """While entered: compares the routers' live choices with the replayed experts."""

    def __init__(self, routers: Sequence[Router]) -> None:
        self._routers = list(routers)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: list[Any] = [0] * len(self._routers)  # experts in common, experts replayed: on the device

    def __enter__(self) -> RouteWatch:
        self._seen = [0] * len(self._routers)
        for layer, router in enumerate(self._routers):
            self._hooks.append(router.register_forward_pre_hook(self._compare(layer)))
        return self

    def __exit__(self, *_: object) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _compare(self, layer: int):
        @torch.no_grad()
        def compare(router: Router, inputs: tuple[Tensor, ...]) -> None:
            x_TD, routes_TK = inputs if len(inputs) == 2 else (inputs[0], None)
            if routes_TK is None or not router.training or recomputing():  # no replay, only scoring, or already counted
                return
            router.training = False  # the live choice must not count in the load
            ids_TK = router.forward(x_TD).ids
            router.training = True
            same = (ids_TK[:, :, None] == routes_TK[:, None, :]).any(1)
            self._seen[layer] = self._seen[layer] + torch.stack((same.sum(), (routes_TK >= 0).sum()))

        return compare

    def overlap(self) -> dict[str, float]:
        """Share of the replayed experts that a live choice has too, over all ranks.

        ``route_overlap``: mean over the layers, ``route_overlap_min``: the worst layer. Empty for a dense
        policy.
        """
        if not self._routers:
            return {}
        nothing = torch.zeros(2, dtype=torch.int64, device=self._routers[0].load_E.device)
        seen = torch.stack([nothing + counts for counts in self._seen]).double()
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            torch.distributed.all_reduce(seen)
        shares = seen[:, 0] / seen[:, 1].clamp(min=1)
        return {"route_overlap": float(shares.mean()), "route_overlap_min": float(shares.min())}
