"""Attention over packed rows that share their beginnings, against float64 row by row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.blocks.attention import Shared, packed_attention
from model.kernels import cpu_ops

LENGTHS = [50, 45, 61, 45, 7]
OWN = (0, 20, 30, 45, 0)  # the fourth row is the third's beginning, the fifth stands alone


def tree() -> Shared:
    first_row, two = torch.arange(50), torch.cat([torch.arange(20), torch.arange(50, 75)])
    three = torch.cat([two[:30], torch.arange(75, 106)])
    place_T = torch.cat([first_row, two, three, three[:45], torch.arange(106, 113)])
    first_U = torch.stack([torch.nonzero(place_T == token)[0, 0] for token in range(113)])
    return Shared(own=OWN, place_T=place_T, first_U=first_U)


def inputs(heads: int, keys: int, width: int, values: int, count: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(heads + width)
    shapes = (count, heads, width), (count, keys, width), (count, keys, values), (count, heads, values)
    return [torch.randn(shape).to(dtype) for shape in shapes]


def slow(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float, shared: Shared) -> Tensor:
    """Each row by itself in float64."""
    outs = []
    for place in shared.place_T.split(lengths):
        q, k, v = (x[place].transpose(0, 1) for x in (query, key, value))
        k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
        weights = (q @ k.mT * scale).masked_fill(torch.ones(len(place), len(place)).triu(1) > 0, -torch.inf).softmax(-1)
        outs.append((weights @ v).transpose(0, 1))
    return torch.cat(outs)[shared.first_U]


@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("shape", [(9, 3, 64, 64), (4, 4, 24, 40), (8, 2, 128, 128), (3, 1, 66, 2)])
def test_rows_see_their_own_positions_and_gradients_come_back(shape: tuple[int, ...], dtype: torch.dtype, close: float):
    *given, grad = inputs(*shape, count=113, dtype=dtype)
    scale, shared = 0.3, tree()
    if dtype == torch.bfloat16:
        assert cpu_ops.attends(given[0], given[2])
    mine, theirs = ([x.clone().to(kind).requires_grad_() for x in given] for kind in (dtype, torch.float64))
    out, wanted = packed_attention(*mine, LENGTHS, scale, shared), slow(*theirs, LENGTHS, scale, shared)
    found = out, *torch.autograd.grad(out, mine, grad)
    expected = wanted, *torch.autograd.grad(wanted, theirs, grad.double())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert float((one.double() - other).norm() / other.norm()) < close


def test_a_rows_bits_depend_neither_on_other_rows_nor_on_threads():
    query, key, value, grad = inputs(6, 2, 32, 32, 300, torch.bfloat16)
    lengths = [90, 170, 40]
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            leaves = [x.clone().requires_grad_() for x in (query, key, value)]
            out = packed_attention(*leaves, lengths, None)
            found.append((out, *torch.autograd.grad(out, leaves, grad)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        alone = [x[part].clone().requires_grad_() for x in (query, key, value)]
        out = packed_attention(*alone, [length], None)
        apart = (out, *torch.autograd.grad(out, alone, grad[part]))
        assert all(torch.equal(one, other[part]) for one, other in zip(apart, found[0], strict=True))
        start += length


def test_scores_far_apart_overflow_nothing():
    query, key, value, grad = inputs(2, 2, 16, 16, 40, torch.bfloat16)
    leaves = [(x * 60).requires_grad_() if n < 2 else x.requires_grad_() for n, x in enumerate((query, key, value))]
    out = packed_attention(*leaves, [40], 1.0)
    wanted = F.scaled_dot_product_attention(
        *(x.detach().float().transpose(0, 1)[None] for x in leaves), is_causal=True, scale=1.0
    )
    assert float((out.float() - wanted[0].transpose(0, 1)).abs().max()) < 0.05
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(out, leaves, grad))
