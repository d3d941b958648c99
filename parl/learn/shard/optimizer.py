"""Muon on matrices, AdamW on everything else, as one optimiser with two kinds of parameter groups.

Muon: Jordan et al. 2024; updates scaled to AdamW's size by 0.2 √max(n, m) as in Moonlight (arXiv 2502.16982,
eq. 4) and Kimi K2. Stacks of matrices (experts) are orthogonalised in batches. fp32 throughout. Ranks with
the same gradients can share the work: each orthogonalises some of the matrices and sends them to the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from parl.learn.shard.split_muon import SplitMuon

_CHUNK = 2**20  # elements whose look-ahead is computed at a time
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz iteration of the Muon reference


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Approximate U Vᵀ of each [..., n, m] matrix by Newton-Schulz iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def muon_scale(n: int, m: int) -> float:
    """Scale of an [n, m] matrix's update relative to AdamW's."""
    return 0.2 * max(n, m) ** 0.5


def deal(matrices: list[Tensor], ranks: int) -> list[list[int]]:
    """Which of ``matrices`` each rank orthogonalises: costliest first, to the rank with the least so far."""
    shares: list[list[int]] = [[] for _ in range(ranks)]
    costs = [0.0] * ranks
    prices = [matrix.numel() * min(matrix.shape[-2:]) for matrix in matrices]
    for index in sorted(range(len(matrices)), key=lambda i: -prices[i]):
        rank = costs.index(min(costs))
        shares[rank].append(index)
        costs[rank] += prices[index]
    return shares


def orthogonalise_together(matrices: list[Tensor], group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """:func:`orthogonalise` of each, distributed over the ranks, which must all hold the same ``matrices``.

    Every rank gets what one alone would compute, bit-equal on equal processors: nothing is summed. ``group``:
    the ranks, None for all.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    done: list[Tensor] = list(matrices)
    for owner, share in enumerate(deal(matrices, ranks)):
        if owner == rank:
            for index in share:
                done[index] = orthogonalise(matrices[index])
    for owner, share in enumerate(deal(matrices, ranks)):
        if share:
            flat = torch.cat([done[index].reshape(-1) for index in share])
            dist.broadcast(flat, group=group, group_src=owner)
            for index, values in zip(share, flat.split([matrices[i].numel() for i in share]), strict=True):
                done[index] = values.view(matrices[index].shape)
    return done


def _square(grad: Tensor, room: Tensor) -> Tensor:
    """The squared norm, computed in ``room``, in float64: a copy of each gradient would fragment memory."""
    return room[: grad.numel()].view(grad.shape).copy_(grad).square_().sum()


class NotFiniteLoss(FloatingPointError):
    """The loss or its gradient was NaN or infinite; no weight was changed."""


class MuonAdamW(torch.optim.Optimizer):
    """Parameter groups have ``muon: bool`` and ``lr``; betas and momentum are shared.

    ``muon_lr`` None: AdamW for the matrices, too. ``experts``: this rank's part of a stack;
    ``expert_groups``: DeepSpeed's name, the ranks that share the stack, the replicas. ``grad_clip`` None: the
    caller clips. Under ZeRO parameters are flat ranges, and :attr:`splits` makes their matrices whole.
    """

    def __init__(
        self,
        matrices: Iterable[torch.nn.Parameter],
        rest: Iterable[torch.nn.Parameter],
        *,
        muon_lr: float | None,
        lr: float,
        grad_clip: float | None = float("inf"),
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        share: bool = False,
        experts: Iterable[torch.nn.Parameter] = (),
        expert_groups: tuple[str, dist.ProcessGroup, dist.ProcessGroup] | None = None,
    ) -> None:
        muon = {"muon": muon_lr is not None, "lr": lr if muon_lr is None else muon_lr}
        groups = [
            {"params": list(matrices), **muon},
            {"params": list(rest), "muon": False, "lr": lr},
        ]
        self._share = share  # ranks with the same gradients (ZeRO 0) orthogonalise together
        self._split_over, self._replicas = None, None  # ranks that share the experts, replicas
        if expert_groups is not None:
            name, self._split_over, self._replicas = expert_groups
            moe = {"moe": True, "name": name}  # DeepSpeed's mark
            groups.insert(1, {"params": list(experts), **muon, **moe})
        self.splits: dict[int, SplitMuon] = {}  # by the flat tensor's id
        self.grad_clip = grad_clip
        self.grad_norm = 0.0  # of the last step, before clipping
        super().__init__(groups, {"weight_decay": weight_decay, "momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        """Update every parameter that has a gradient, clipped to a global norm of at most ``grad_clip``.

        Clipping is here because the gradient is complete only here: reduced over all ranks. A norm that is
        not finite raises :class:`NotFiniteLoss` and changes nothing.
        """
        if self.grad_clip is not None:
            self._clip(self.grad_clip)
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group["weight_decay"]:
                for parameter in parameters:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
            if group["muon"]:
                self._muon(parameters, group)
            else:
                for parameter in parameters:
                    self._adamw(parameter, self.state[parameter], group)

    def _clip(self, limit: float) -> None:
        found, shared = [], []
        for group in self.param_groups:
            grads = [p.grad for p in group["params"] if p.grad is not None]
            (shared if group.get("moe") else found).extend(grads)
        room = torch.empty(max(grad.numel() for grad in (*found, *shared)), dtype=torch.float64, device=found[0].device)
        square = torch.stack([_square(grad, room) for grad in found]).sum()
        if self._split_over is not None:
            others = torch.stack([_square(grad, room) for grad in shared]).sum()
            dist.all_reduce(others, group=self._split_over)
            square = square + others
        self.grad_norm = float(square.sqrt())
        if not math.isfinite(self.grad_norm):
            raise NotFiniteLoss(f"the gradient's norm is {self.grad_norm}; the weights were not touched")
        if self.grad_norm > limit:
            for grad in (*found, *shared):
                grad.mul_(limit / self.grad_norm)

    def _muon(self, parameters: list[Tensor], group: dict) -> None:
        """One tensor after the other. Ranks that share work need all at once."""
        if self.splits or not self._share:
            for parameter in parameters:
                ahead = self._look_ahead(parameter, group["momentum"])
                if self.splits:
                    parameter.add_(self.splits[id(parameter)].update(ahead), alpha=-group["lr"])
                else:
                    self._move(parameter, orthogonalise(ahead), group)
            return
        looks_ahead = [self._look_ahead(parameter, group["momentum"]) for parameter in parameters]
        updates = orthogonalise_together(looks_ahead, self._replicas if group.get("moe") else None)
        for parameter, update in zip(parameters, updates, strict=True):
            self._move(parameter, update, group)

    @staticmethod
    def _move(parameter: Tensor, update: Tensor, group: dict) -> None:
        parameter.add_(update, alpha=-group["lr"] * muon_scale(*parameter.shape[-2:]))

    def _look_ahead(self, parameter: Tensor, momentum: float) -> Tensor:
        """Nesterov's, in the gradient's place, which nobody needs afterwards; advances the momentum."""
        state, grad = self.state[parameter], parameter.grad
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        assert grad is not None
        state["momentum"].mul_(momentum).add_(grad)
        rows = max(1, _CHUNK * len(grad) // grad.numel())
        for part, moved in zip(grad.split(rows), state["momentum"].split(rows), strict=True):
            torch.add(momentum * moved, part, out=part)
        return grad

    @staticmethod
    def _adamw(parameter: Tensor, state: dict, group: dict) -> None:
        if "step" not in state:
            state["step"] = 0
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        grad, (beta1, beta2) = parameter.grad, group["betas"]
        assert grad is not None
        state["step"] += 1
        state["mean"].lerp_(grad, 1 - beta1)
        state["square"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = (1 - beta2 ** state["step"]) ** 0.5 / (1 - beta1 ** state["step"])
        denominator = state["square"].sqrt().add_(group["eps"])
        parameter.addcdiv_(state["mean"], denominator, value=-group["lr"] * scale)
