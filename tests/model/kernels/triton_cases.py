"""The Triton kernels against the specification in float64; ``test_kernels_triton.py`` runs this file.

In a process of its own: whether Triton interprets (on the CPU) or compiles (for a GPU) is decided once, at its import.
Shapes: T tokens, E experts, K experts a token, D hidden, I expert width.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

import model.kernels.triton as kernels
from model.blocks import rotary
from model.kernels import reference
from model.kernels.triton import settings
from model.kimi import int4

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"


def to(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# T, E, K, groups, open groups
ROUTERS = [(0, 8, 2, 1, 1), (1, 8, 2, 1, 1), (7, 16, 3, 1, 1), (13, 384, 8, 1, 1), (11, 24, 4, 3, 2), (5, 12, 3, 4, 2)]


def apart(tokens: int, experts: int, seed: int = 0) -> Tensor:
    """Logits whose sigmoids lie too far apart for rounding to change their order."""
    return (torch.rand(tokens, experts, generator=seeded(seed)).argsort(1) - experts / 2) * (8.0 / experts)


def routed(logits: Tensor, bias: Tensor, forced: Tensor | None, *args) -> tuple[list[Tensor], list[Tensor]]:
    """What the kernel answers, and the specification in float64."""
    wanted = reference.route_fwd(logits.double(), bias.double(), forced, *args)
    given = kernels.route_fwd(*to(logits, bias), None if forced is None else forced.to(DEVICE), *args)
    return [t.cpu() for t in given], list(wanted)


@pytest.mark.parametrize("shape", ROUTERS)
@pytest.mark.parametrize("norm", [True, False])
def test_the_router_and_its_gradient_are_the_reference_s(shape: tuple[int, ...], norm: bool):
    tokens, experts, top_k, *groups = shape
    logits = apart(tokens, experts)
    bias = torch.randint(-2, 3, (experts,), generator=seeded(1)) * 0.25 if experts < 100 else torch.zeros(experts)
    forced = torch.randint(0, experts, (tokens, top_k), generator=seeded(2)).to(torch.int16)
    forced[::3] = -1  # live; the others may name an expert twice
    for replayed in (None, forced):
        given, wanted = routed(logits, bias, replayed, top_k, *groups, norm, 2.5)
        assert torch.equal(given[0], wanted[0]) and torch.equal(given[3], wanted[3])
        assert (given[0].dtype, given[3].dtype) == (torch.int16, torch.int32)
        torch.testing.assert_close(given[1:3], [t.float() for t in wanted[1:3]], rtol=1e-6, atol=1e-7)
        grad = torch.randn(tokens, top_k, generator=seeded(3))
        got = kernels.route_bwd(*to(grad, given[2], given[0]), experts, norm, 2.5).cpu()
        exact = reference.route_bwd(grad.double(), wanted[2], wanted[0], experts, norm, 2.5)
        torch.testing.assert_close(got, exact.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("groups", [(1, 1), (4, 2)])
def test_equal_scores_go_to_the_lowest_experts(groups: tuple[int, int]):
    logits = torch.zeros(3, 16)
    logits[1, 5:9] = 1.0
    logits[2] = torch.arange(16) % 2
    given, wanted = routed(logits, torch.zeros(16), None, 4, *groups, True, 1.0)
    assert torch.equal(given[0], wanted[0])
    assert given[0][0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("experts", [16, 200, 384, 600])  # one piece, padded, three, more than the pieces there are
@pytest.mark.parametrize("spread", [1e-6, 1.0, 30.0])  # crowded on the grid; apart; at the sigmoid's ends
def test_scores_that_meet_on_the_grid_are_told_apart(experts: int, spread: float):
    g = seeded(experts)
    scores = 0.5 + spread * (torch.rand(9, experts, generator=g) - 0.5)
    bias = torch.randn(experts, generator=g) * (spread >= 1)
    logits = torch.zeros(9, experts)  # all scores are 0.5 in any arithmetic: the bias alone decides
    given, _ = routed(logits, scores[0] + bias, None, 6, 1, 1, True, 1.0)
    in_float32 = reference.route_fwd(logits, scores[0] + bias, None, 6, 1, 1, True, 1.0)
    assert torch.equal(given[0], in_float32[0])
    logits = (scores * 64).round() / 4  # far apart or equal, and many of them
    given, wanted = routed(logits, torch.zeros(experts), None, 6, 1, 1, True, 1.0)
    once = torch.sigmoid(logits)  # float32 may call equal what float64 does not: by the score, then by the expert
    assert torch.equal(once.gather(1, given[0].long()), once.gather(1, wanted[0].long()))
    assert all(len(set(row)) == 6 for row in given[0].tolist())


def test_a_nan_is_the_least_and_ids_stay_in_range():
    logits = apart(4, 12)
    logits[0, 3], logits[1], logits[2, 1:] = float("nan"), float("nan"), float("nan")
    given, wanted = routed(logits, torch.zeros(12), None, 3, 1, 1, True, 1.0)
    assert torch.equal(given[0], wanted[0])
    forced = torch.tensor([[999, 0, 1]], dtype=torch.int16).expand(4, 3)  # not refused on a GPU: nothing waits for it
    assert int(routed(logits, torch.zeros(12), forced.clamp(max=11), 3, 1, 1, True, 1.0)[0][0].max()) == 11
    assert int(kernels.route_fwd(*to(logits, torch.zeros(12), forced), 3, 1, 1, True, 1.0)[0].max()) == 11


@pytest.mark.parametrize(("rows", "vocabulary"), [(0, 64), (7, 64), (5, 163), (3, 1000)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_log_probs_entropies_and_the_logits_gradient(rows: int, vocabulary: int, dtype: torch.dtype):
    g = seeded(vocabulary)
    logits = (torch.randn(rows, vocabulary, generator=g) * 3).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=g)
    grad = torch.randn(rows, generator=g)
    wanted = reference.token_logprobs_fwd(logits.double(), targets, 0.7)
    given = kernels.token_logprobs_fwd(*to(logits, targets), 0.7)
    for got, exact_ in zip(given, wanted, strict=True):
        torch.testing.assert_close(got.cpu().double(), exact_, rtol=1e-6, atol=1e-5)
    back = kernels.token_logprobs_bwd(*to(grad, logits, targets), given[2], 0.7).cpu()
    exact_ = reference.token_logprobs_bwd(grad.double(), logits.double(), targets, wanted[2], 0.7)
    assert back.dtype == dtype
    assert (back.double() - exact_).norm() <= (1e-6 if dtype == torch.float32 else 4e-3) * exact_.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(0, 8), (1, 1), (7, 40), (33, 200)])
def test_the_dense_activation_and_its_gradient_are_the_specification(rows: int, width: int, dtype: torch.dtype):
    g = seeded(rows + width)
    gate_up, dout = torch.randn(rows, 2 * width, generator=g) * 3, torch.randn(rows, width, generator=g)
    gate_up, dout = gate_up.to(dtype), dout.to(dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 4e-3
    given = kernels.swiglu_fwd(*to(gate_up)).cpu(), kernels.swiglu_bwd(*to(dout, gate_up)).cpu()
    wide = reference.swiglu_fwd(gate_up.double()), reference.swiglu_bwd(dout.double(), gate_up.double())
    for got, exact_ in zip(given, wide, strict=True):
        assert got.dtype == dtype and got.shape == exact_.shape
        assert (got.double() - exact_).norm() <= tolerance * exact_.norm()


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize(
    ("tokens", "heads", "width", "rotated", "positions"), [(0, 2, 8, 4, 3), (6, 3, 12, 4, 3), (5, 4, 8, 8, 5)]
)
def test_rotated_tails_are_those_of_the_plain_rotation(tokens, heads, width, rotated, positions, near):
    g = seeded(tokens + width)
    x = torch.randn(tokens, heads, width, generator=g)
    cos, sin = rotary.tables(rotary.frequencies(rotated, 1e4), positions)
    place = torch.arange(tokens) % positions
    tail = rotary.rotate(x[..., width - rotated :], cos[place][:, None], sin[place][:, None], near)
    turned = x.clone()
    given = to(turned, cos, sin)
    kernels.rotate_tails_(*given, near, back=False)
    torch.testing.assert_close(given[0].cpu(), torch.cat((x[..., : width - rotated], tail), -1), rtol=1e-6, atol=1e-6)
    kernels.rotate_tails_(*given, near, back=True)
    torch.testing.assert_close(given[0].cpu(), x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(0, 4, 2), (1, 5, 1), (53, 7, 3), (40, 384, 8), (40, 3, 2)])
@pytest.mark.parametrize("skewed", [False, True])
def test_dispatch_is_the_stable_order(tokens: int, experts: int, top_k: int, skewed: bool):
    ids = torch.randint(0, experts, (tokens, top_k), generator=seeded()).to(torch.int16)
    if skewed:
        ids[:] = experts - 1
    counts = torch.bincount(ids.flatten().int(), minlength=experts).to(torch.int32)
    for given, wanted in zip(kernels.dispatch(*to(ids, counts)), reference.dispatch(ids, counts), strict=True):
        assert torch.equal(given.cpu(), wanted) and given.dtype == torch.int32


def layer(tokens: int, experts: int, top_k: int, hidden: int, width: int, dtype: torch.dtype, load: str = "random"):
    """(x, w13, w2, plan, weights, base, dout) of a layer; some experts are empty, or all tokens are with one."""
    g = seeded(tokens + hidden)
    ids = torch.rand(tokens, experts, generator=g).argsort(1)[:, :top_k].to(torch.int16)
    if load == "one":
        ids[:] = 1
    counts = torch.bincount(ids.flatten().int(), minlength=experts).to(torch.int32)
    x, base, dout = (torch.randn(tokens, hidden, generator=g).to(dtype) for _ in range(3))
    w13 = (torch.randn(experts, 2 * width, hidden, generator=g) * hidden**-0.5).to(dtype)
    w2 = (torch.randn(experts, hidden, width, generator=g) * width**-0.5).to(dtype)
    weights = torch.rand(tokens, top_k, generator=g)
    return to(x, w13, w2), to(*reference.dispatch(ids, counts)), *to(weights, base, dout)


def both(case: tuple, based: bool = True) -> list[Tensor]:
    """(out, hidden, dx, dw13, dw2, dweights) of the kernels."""
    matrices, plan, weights, base, dout = case
    out, hidden = kernels.expert_mlp_fwd(*matrices, *plan, weights, base if based else None)
    return [out, hidden, *kernels.expert_mlp_bwd(dout, *matrices, hidden, *plan, weights)]


def exact(case: tuple, based: bool = True) -> list[Tensor]:
    """The same by the specification in float64."""
    matrices, plan, weights, base, dout = case
    wide = [tensor.cpu().double() for tensor in (*matrices, weights, base, dout)]
    order = [tensor.cpu() for tensor in plan]
    out, hidden = reference.expert_mlp_fwd(*wide[:3], *order, wide[3], wide[4] if based else None)
    return [out, hidden, *reference.expert_mlp_bwd(wide[5], *wide[:3], hidden, *order, wide[3])]


LAYERS = [  # T, E, K, D, I, load
    (0, 3, 2, 32, 16, "random"),
    (1, 3, 2, 32, 16, "random"),
    (37, 3, 2, 40, 24, "random"),
    (17, 3, 1, 32, 48, "one"),
]
KINDS = [  # dtype, settings
    (torch.float32, {"descriptors": False}),
    (torch.bfloat16, {"descriptors": False}),
    (torch.bfloat16, {"descriptors": True, "spread": False}),
    (torch.bfloat16, {"descriptors": True}),
    (torch.bfloat16, {"descriptors": True, "exact_sums": True}),
]


@pytest.mark.parametrize("shape", LAYERS, ids=str)
@pytest.mark.parametrize(("dtype", "changes"), KINDS, ids=str)
def test_experts_and_all_gradients_are_the_reference_s(shape: tuple, dtype: torch.dtype, changes: dict[str, bool]):
    case = layer(*shape[:5], dtype, shape[5])
    based = shape[5] != "one"
    with settings.using(**changes):
        given = both(case, based)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for got, wanted in zip(given, exact(case, based), strict=True):
        assert got.isfinite().all()
        assert (got.cpu().double() - wanted).norm() <= tolerance * wanted.norm() + 1e-12


def test_running_again_gives_the_same_bits():
    case = layer(19, 3, 2, 40, 24, torch.bfloat16)
    assert all(torch.equal(one, two) for one, two in zip(both(case), both(case), strict=True))


def test_a_token_has_the_same_bits_alone_and_among_others():
    (x, w13, w2), _, weights, base, _ = layer(33, 3, 2, 32, 16, torch.bfloat16)
    ids = torch.rand(33, 3, generator=seeded()).argsort(1)[:, :2].to(torch.int16)

    def forward(rows: list[int]) -> Tensor:
        chosen = ids[rows]
        counts = torch.bincount(chosen.flatten().int(), minlength=3).to(torch.int32)
        plan = kernels.dispatch(*to(chosen, counts))
        return kernels.expert_mlp_fwd(x[rows], w13, w2, *plan, weights[rows], base[rows])[0]

    among = forward(list(range(33)))
    assert torch.equal(forward([20])[0], among[20])
    assert torch.equal(forward(list(range(18, 25))), among[18:25])


def test_settings_end_with_their_block_also_by_an_error():
    before = settings.current()
    with pytest.raises(ZeroDivisionError), settings.using(exact_sums=True):
        assert settings.current().exact_sums
        _ = 1 / 0
    assert settings.current() is before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fake_quantisation_is_the_cpu_s_to_the_bit(dtype: torch.dtype):
    weight = torch.randn(3, 5, 96, generator=seeded()).to(dtype)
    weight[0, 1, 32:64] = 0
    weight[1, 2, :32] = torch.arange(32) * 0.5  # halves between codes: ties to even
    out = kernels.fake_quant_int4_g32(*to(weight)).cpu()
    assert torch.equal(out, int4.fake_quant(weight))
    if dtype == torch.float32:
        assert torch.equal(kernels.fake_quant_int4_g32(*to(out)).cpu(), out)
    with pytest.raises(ValueError, match="48 inputs has no whole groups of 32"):
        kernels.fake_quant_int4_g32(*to(torch.zeros(2, 48)))
