"""Reference and C++ against float64 and against each other: values, gradients, the same bits, memory."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.kernels import cpu_ops, ops, reference

native = cpu_ops.usable(torch.float32)
needs_compiler = pytest.mark.skipif(not native, reason="no C++ compiler")
KINDS = [pytest.param(reference, id="reference"), pytest.param(cpu_ops, id="native", marks=needs_compiler)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of the largest element


class Shape(NamedTuple):
    T: int
    D: int
    E: int
    K: int
    I: int  # noqa: E741  # the experts' width everywhere
    groups: int = 1
    topk_groups: int = 1


class Case(NamedTuple):
    x: Tensor
    w13: Tensor
    w2: Tensor
    logits: Tensor
    bias: Tensor
    base: Tensor
    dout: Tensor

    def to(self, dtype: torch.dtype) -> Case:
        return Case(*(t.to(dtype) if name not in ("logits", "bias") else t for name, t in self._asdict().items()))


def case(s: Shape, load: str = "random") -> Case:
    """``load``: ``random``; ``ties``, few levels of scores; ``one``, all tokens like the first K experts best."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(s.T, s.E, generator=g)
    if load == "ties":
        logits = logits.round()
    if load == "one":
        logits = logits - 3 * torch.arange(s.E)
    x, base, dout = (torch.randn(s.T, s.D, generator=g) for _ in range(3))
    w13 = torch.randn(s.E, 2 * s.I, s.D, generator=g) / s.D**0.5
    w2 = torch.randn(s.E, s.D, s.I, generator=g) / s.I**0.5
    return Case(x, w13, w2, logits, torch.zeros(s.E), base, dout)


def route(kind: ModuleType, c: Case, s: Shape, forced: Tensor | None = None, norm: bool = True):
    return kind.route_fwd(c.logits, c.bias, forced, s.K, s.groups, s.topk_groups, norm, 2.5)


def everything(kind: ModuleType, c: Case, s: Shape, forced: Tensor | None = None) -> dict[str, Tensor]:
    """All results of forward and backward."""
    ids, weights, scores, counts = route(kind, c, s, forced)
    plan = kind.dispatch(ids, counts)
    weights = weights.to(c.x.dtype) if c.x.dtype == torch.float64 else weights
    out, hidden = kind.expert_mlp_fwd(c.x, c.w13, c.w2, *plan, weights, c.base)
    dx, dw13, dw2, dweights = kind.expert_mlp_bwd(c.dout, c.x, c.w13, c.w2, hidden, *plan, weights)
    dlogits = kind.route_bwd(dweights.to(scores.dtype), scores, ids, s.E, True, 2.5)
    names = ("ids", "counts", "order", "inverse", "offsets", "weights", "scores", "out", "hidden")
    values = (ids, counts, *plan, weights, scores, out, hidden)
    grads = {"dx": dx, "dw13": dw13, "dw2": dw2, "dweights": dweights, "dlogits": dlogits}
    return dict(zip(names, values, strict=True)) | grads


def compare(kind: ModuleType, s: Shape, dtype: torch.dtype, load: str = "random", forced: Tensor | None = None) -> None:
    c = case(s, load).to(dtype)
    ours = everything(kind, c, s, forced)
    exact = everything(reference, c.to(torch.float64), s, forced)  # routed from the same float32 logits
    for name, value in ours.items():
        if not value.is_floating_point():
            torch.testing.assert_close(value, exact[name], rtol=0, atol=0, msg=f"{name} of {s}")
        elif value.numel():
            like = (
                "dweights" if name == "dlogits" else name
            )  # with one expert a token all of a logit's gradient cancels
            off = (value.double() - exact[name].double()).abs().max() / exact[like].abs().max().clamp(min=1e-9)
            # of a few sums, the largest too may cancel to nearly nothing
            allowed = TOLERANCE[dtype] * (10 if exact[like].numel() < 64 else 1)
            assert off < allowed, f"{name} of {s} is off by {off:.1e} of its largest element"


ODD = [
    Shape(T=0, D=16, E=4, K=2, I=8),
    Shape(T=1, D=16, E=4, K=2, I=8),
    Shape(T=37, D=13, E=7, K=3, I=11),
    Shape(T=23, D=24, E=384, K=8, I=16),
    Shape(T=29, D=16, E=32, K=4, I=8, groups=8, topk_groups=3),
    Shape(T=450, D=264, E=2, K=1, I=136),  # more rows, columns and sums than one block of each
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("load", ["random", "ties", "one"])
@pytest.mark.parametrize("shape", ODD, ids=str)
def test_values_and_gradients_are_those_of_float64(kind: ModuleType, shape: Shape, load: str, dtype: torch.dtype):
    compare(kind, shape, dtype, load)


@needs_compiler
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_shape_gives_what_the_reference_gives(data: st.DataObject):
    size = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    group, groups = size(2, 9), size(1, 5)
    topk_groups = size(1, groups)
    s = Shape(
        size(0, 70), size(1, 70), group * groups, size(1, min(8, group * topk_groups)), size(1, 40), groups, topk_groups
    )
    compare(
        cpu_ops, s, data.draw(st.sampled_from(list(TOLERANCE))), data.draw(st.sampled_from(["random", "ties", "one"]))
    )


@pytest.mark.parametrize("kind", KINDS)
def test_replayed_experts_are_taken_in_their_order_and_rows_of_minus_one_route_live(kind: ModuleType):
    s = Shape(T=31, D=16, E=8, K=3, I=8)
    live = route(kind, case(s), s)[0]
    forced = live.flip(1).roll(1, 0).contiguous()
    forced[::4] = -1
    ids = route(kind, case(s), s, forced)[0]
    assert ids[::4].equal(live[::4])
    replayed = torch.arange(s.T) % 4 != 0
    assert ids[replayed].equal(forced[replayed])
    for dtype in TOLERANCE:
        compare(kind, s, dtype, forced=forced)


@pytest.mark.parametrize("kind", KINDS)
@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, -2.0, float("nan")]), min_size=20, max_size=20), min_size=1, max_size=4
    )
)
@example([[float("nan")] * 20])
@settings(max_examples=30, deadline=None)
def test_chosen_are_the_largest_ties_by_index_and_nan_comes_last(kind: ModuleType, logits: list[list[float]]):
    ids = kind.route_fwd(torch.tensor(logits), torch.zeros(20), None, 6, 1, 1, True, 1.0)[0]
    for row, chosen in zip(logits, ids.tolist(), strict=True):
        assert chosen == sorted(range(20), key=lambda e: (row[e] != row[e], -row[e] if row[e] == row[e] else 0, e))[:6]


def test_the_bias_chooses_but_does_not_weigh():
    for kind in (reference, cpu_ops) if native else (reference,):
        logits, bias = torch.tensor([[2.0, 1.0, 0.0, -1.0]]), torch.tensor([-1.0, 0.0, 0.0, 1.0])
        ids, weights, _, counts = kind.route_fwd(logits, bias, None, 2, 1, 1, False, 1.0)
        assert ids.tolist() == [[3, 1]] and counts.tolist() == [0, 1, 0, 1]
        torch.testing.assert_close(weights, torch.sigmoid(torch.tensor([[-1.0, 1.0]])))


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_bits_are_those_of_another_run_and_of_any_number_of_threads(dtype: torch.dtype):
    s = Shape(T=300, D=72, E=5, K=2, I=40)
    c, before, seen = case(s).to(dtype), torch.get_num_threads(), []
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        seen.append(everything(cpu_ops, c, s))
    torch.set_num_threads(before)
    for other in seen[1:]:
        assert all(seen[0][name].equal(value) for name, value in other.items())


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_token_has_the_same_bits_alone_in_seven_and_in_4096(dtype: torch.dtype):
    s = Shape(T=4096, D=40, E=6, K=2, I=24)
    whole = case(s).to(dtype)
    everyone = everything(cpu_ops, whole, s)
    for rows in (slice(0, 1), slice(0, 7), slice(4095, 4096), slice(2000, 2007), slice(100, 150)):
        few = whole._replace(x=whole.x[rows], logits=whole.logits[rows], base=whole.base[rows], dout=whole.dout[rows])
        some = everything(cpu_ops, few, s._replace(T=len(few.x)))
        for name in ("ids", "weights", "scores", "out", "dx", "dweights"):
            assert some[name].equal(everyone[name][rows]), name


@needs_compiler
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("hidden", [7, 40, 520], ids=str)
def test_decoding_in_one_call_has_the_bits_of_the_forward_pass_however_many_rows_an_expert_has(
    dtype: torch.dtype, hidden: int
):
    s = Shape(T=1, D=hidden, E=3, K=2, I=27)
    one = case(s).to(dtype)
    for tokens in (1, 3, 9, 31):
        c = case(s._replace(T=tokens)).to(dtype)
        c = c._replace(x=torch.cat([one.x, c.x[1:]]), base=torch.cat([one.base, c.base[1:]]))
        ids = torch.tensor([[0, 2]] * tokens, dtype=torch.int16)
        ids[1::3] = torch.tensor([1, 0], dtype=torch.int16)
        weights = torch.full((tokens, 2), 0.3)
        with torch.no_grad():
            fused = ops.experts(c.x, one.w13, one.w2, ids, weights, c.base)
            alone = ops.experts(one.x, one.w13, one.w2, ids[:1], weights[:1], one.base)
        x = c.x.repeat(8, 1).requires_grad_()
        many = ops.experts(x, one.w13, one.w2, ids.repeat(8, 1), weights.repeat(8, 1), c.base.repeat(8, 1))
        assert fused.equal(many[:tokens]) and alone.equal(fused[:1])
    with torch.no_grad(), pytest.raises(ValueError, match="there are 3 experts"):
        ops.experts(one.x, one.w13, one.w2, torch.tensor([[0, 3]], dtype=torch.int16), torch.ones(1, 2))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_kept_for_the_backward_pass_are_x_the_hidden_layer_and_a_few_numbers_an_assignment(dtype: torch.dtype):
    s = Shape(T=64, D=32, E=4, K=2, I=16)
    c, kept = case(s).to(dtype), {}

    def note(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    leaves = [t.requires_grad_() for t in (c.x, c.w13, c.w2, c.logits, c.base)]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        routing = ops.route(c.logits, c.bias, top_k=s.K)
        out = ops.expert_mlp(c.x, c.w13, c.w2, ops.dispatch(routing.ids, routing.counts), routing.weights, c.base)
    matrices = (s.E * 3 * s.I * s.D) * dtype.itemsize
    room = s.T * (s.D + s.K * 2 * s.I) * dtype.itemsize
    assert sum(kept.values()) <= matrices + room + s.T * s.K * (4 + 4 + 4 + 4 + 2) + 4 * (s.E + 1)
    out.sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)
