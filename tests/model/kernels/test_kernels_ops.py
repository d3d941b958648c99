"""The operators: registration, gradients, refusals. Values are compared in test_kernels_parity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.kernels import ops, reference

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


def test_the_dense_activation_has_the_gradient_of_its_specification():
    gate_up = torch.randn(T, 2 * I, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = ops.swiglu(gate_up)
    assert torch.equal(out, reference.swiglu_fwd(gate_up))
    dout = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    (given,) = torch.autograd.grad(out, gate_up, dout)
    torch.testing.assert_close(given, reference.swiglu_bwd(dout, gate_up.detach()))


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


@pytest.mark.parametrize("row", [[0, -1, 1], [-1, 2, 3], [0, 1, E]])
def test_a_forced_row_is_whole_and_names_experts_that_exist(row: list[int]):
    forced = torch.tensor([[0, 1, 2], row])
    with pytest.raises(ValueError, match=rf"token 1 are \[{row[0]}, {row[1]}, {row[2]}\].*ids below {E}"):
        ops.route(torch.zeros(2, E), torch.zeros(E), forced, top_k=K)
