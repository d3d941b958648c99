"""The operators: registration, gradients, what they refuse. Values are compared in test_kernels_parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.kernels import ops

T, D, E, K, I = 7, 4, 6, 3, 4  # noqa: E741  # I is the experts' width everywhere
SETTINGS: dict[str, Any] = {"top_k": K, "n_group": 3, "topk_group": 2, "scale": 2.8}


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    shapes = {"x": (T, D), "w13": (E, 2 * I, D), "w2": (E, D, I), "logits": (T, E), "base": (T, D)}
    random = torch.Generator().manual_seed(0)
    made = {n: torch.randn(*s, dtype=torch.float64, generator=random).requires_grad_() for n, s in shapes.items()}
    return made | {"bias": torch.linspace(-0.1, 0.1, E, dtype=torch.float64)}


def block(x: Tensor, w13: Tensor, w2: Tensor, logits: Tensor, base: Tensor, bias: Tensor, **settings: Any) -> Tensor:
    routing = ops.route(logits, bias, **(SETTINGS | settings))
    plan = ops.dispatch(routing.ids, routing.counts)
    return ops.expert_mlp(x, w13, w2, plan, routing.weights, base)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("forced", [False, True])
def test_gradients_of_the_whole_block_are_those_of_finite_differences(tensors: dict[str, Tensor], norm, forced):
    routes = torch.arange(T * K).view(T, K) % E if forced else None
    if routes is not None:
        routes[::3] = -1
    bias = tensors.pop("bias")
    assert torch.autograd.gradcheck(
        lambda *a: block(*a, bias, norm=norm, forced_TK=routes),  # pyright: ignore[reportCallIssue]
        tuple(tensors.values()),
    )


def test_gradients_of_the_routers_losses_are_those_of_finite_differences(tensors: dict[str, Tensor]):
    logits = tensors["logits"]
    ids = ops.route(logits, tensors["bias"], **SETTINGS).ids
    sequence = torch.tensor([0] * 2 + [2] * 3 + [-1] * 2, dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda x: torch.ops.parl.router_loss(x, ids, sequence, 3, 0.3, 0.1), (logits,))


def test_balanced_sequences_have_the_least_balance_loss():
    """Uniform scores and loads give Σ f P = 1; a sequence that sends all to one likely expert gives more."""
    sequence = torch.zeros(4, dtype=torch.int32)
    even = torch.arange(8, dtype=torch.int16).view(4, 2) % 4
    loss = torch.ops.parl.router_loss(torch.zeros(4, 4), even, sequence, 1, 1.0, 0.0)
    torch.testing.assert_close(loss, torch.tensor(1.0))
    skewed = torch.zeros(4, 4)
    skewed[:, :2] = 3.0
    assert torch.ops.parl.router_loss(skewed, torch.tensor([[0, 1]] * 4).short(), sequence, 1, 1.0, 0.0) > 1.3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_operators_are_registered_as_torch_demands(tensors: dict[str, Tensor], dtype: torch.dtype):
    t = {name: value.detach().to(dtype).requires_grad_(value.requires_grad) for name, value in tensors.items()}
    library, check = torch.ops.parl, torch.library.opcheck
    check(library.route, (t["logits"], t["bias"], None, K, 3, 2, True, 2.0))
    routing = ops.route(t["logits"].detach(), t["bias"], **SETTINGS)
    check(library.dispatch, (routing.ids, routing.counts))
    plan = ops.dispatch(routing.ids, routing.counts)
    for base in (None, t["base"]):
        check(library.expert_mlp, (t["x"], t["w13"], t["w2"], *plan, routing.weights.requires_grad_(), base))
    sequence = torch.zeros(T, dtype=torch.int32)
    check(library.router_loss, (t["logits"], routing.ids, sequence, 1, 0.1, 0.1))


@pytest.mark.parametrize("row", [[0, -1, 1], [-1, 2, 3], [0, 1, E]])
def test_a_forced_row_is_whole_and_names_experts_that_exist(row: list[int]):
    forced = torch.tensor([[0, 1, 2], row])
    with pytest.raises(ValueError, match=rf"token 1 are \[{row[0]}, {row[1]}, {row[2]}\].*ids below {E}"):
        ops.route(torch.zeros(2, E), torch.zeros(E), forced, top_k=K)
