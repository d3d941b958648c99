"""Expert parallelism: each rank of a group holds some of the routed experts, and tokens are sent to them.

Every copy of a token (one for each of its K experts) goes to the rank that holds the expert and back; both
ways are an all-to-all of rows, whose gradient is the reverse all-to-all. There is no dropping and no padding;
recorded routes work as live ones. All ranks of the group must call the same layers in the same order, even
with nothing to send.

Shapes: T tokens, K experts per token, D hidden, R rows received.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Exchange(torch.autograd.Function):
    """Rows [n, D] to the ranks of ``group``: ``sent[r]`` of them go to rank r, ``received[r]`` come from it."""

    @staticmethod
    def forward(ctx, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.counts = sent, received, group
        return _all_to_all(rows, sent, received, group)

    @staticmethod
    def backward(ctx, grad: Tensor):
        sent, received, group = ctx.counts
        return _all_to_all(grad, received, sent, group), None, None, None


def _all_to_all(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    out = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group=group)
    return out


class ExpertGroup:
    """The ranks that share a layer's experts: rank r holds the experts from r · E / ranks on."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)

    def forward(
        self,
        local: Callable[[Tensor, Tensor, Tensor], Tensor],
        here: int,
        x_TD: Tensor,
        ids_TK: Tensor,
        weights_TK: Tensor,
        base_TD: Tensor | None = None,
    ) -> Tensor:
        """Σ_k weight_k · expert_k(x) + base, [T, D].

        ``local(rows, ids, weights)`` computes the ``here`` experts of this rank, whose ids start at 0.
        """
        top_k = ids_TK.shape[1]
        flat = ids_TK.flatten().long()  # the router's are int16
        order = torch.argsort(flat, stable=True)  # by expert, so by rank too
        sent = torch.bincount(flat // here, minlength=self.ranks)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        out, back = sent.tolist(), received.tolist()
        ids_R = _all_to_all(flat[order], out, back, self.group) - self.rank * here
        rows_RD = _Exchange.apply(x_TD[order // top_k], out, back, self.group)
        done = _Exchange.apply(_computed(local, rows_RD, ids_R), back, out, self.group)
        inverse = torch.empty_like(order)
        inverse[order] = torch.arange(order.numel(), device=order.device)
        out_TKD = done[inverse].unflatten(0, ids_TK.shape)
        out_TD = (out_TKD * weights_TK[..., None]).sum(1).to(x_TD.dtype)
        return out_TD if base_TD is None else out_TD + base_TD


def _computed(local: Callable[[Tensor, Tensor, Tensor], Tensor], rows_RD: Tensor, ids_R: Tensor) -> Tensor:
    count = len(rows_RD)
    if not count:  # keep experts and exchange in the graph: peers wait for the gradient, which is zero here
        rows_RD, ids_R = torch.cat((rows_RD, rows_RD.new_zeros(1, rows_RD.shape[1]))), ids_R.new_zeros(1)
    weights_RK = torch.ones(len(rows_RD), 1, device=rows_RD.device)  # float32 as the router's
    return local(rows_RD, ids_R[:, None].to(torch.int16), weights_RK)[:count]


def cut(module: nn.Module, shared: ExpertGroup) -> list[str]:
    """Leave this rank its share of the stacks of ``module``, whose parameters are all stacks; their names."""
    names = []
    for key, parameter in list(module.named_parameters()):
        setattr(module, key, nn.Parameter(share(parameter.detach(), shared.rank, shared.ranks).clone()))
        names.append(key)
    return names


def share(stack: Tensor, rank: int, ranks: int) -> Tensor:
    """The experts of ``rank`` from a whole stack [E, ...]."""
    return stack.chunk(ranks)[rank]
