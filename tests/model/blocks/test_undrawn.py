"""Policies that weights are loaded into: nothing is drawn, and their memory is not touched, or is not there."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_model
from torch import nn

from model.arrays import fill
from model.blocks.undrawn import Undrawn, outlined
from model.decoder import export_weights
from model.family import family_of
from model.kimi.family import Kimi


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_layer_that_is_not_drawn_takes_no_memory():
    before = resident()
    with Undrawn():
        layer = nn.Linear(8192, 8192, bias=False)  # 256 MiB
    assert resident() - before < 2**26
    layer.reset_parameters()
    assert resident() - before > 2**27


def test_a_blank_policy_becomes_the_one_whose_weights_it_gets():
    shape = tiny_model()
    torch.manual_seed(0)
    drawn = family_of(shape).policy(shape)
    blank = family_of(shape).blank(shape)
    assert blank.config == shape and drawn.config == shape
    fill(blank, export_weights(drawn))
    tokens = torch.arange(1, 9)[None]
    mask = tokens > 1
    with torch.no_grad():
        assert torch.equal(blank.eval()(tokens, mask)[0], drawn.eval()(tokens, mask)[0])


def test_an_outline_has_buffers_but_no_memory_for_parameters_and_draws_as_a_blank_policy_does():
    shape = tiny_model()
    torch.manual_seed(0)
    blank, drawn = family_of(shape).blank(shape), torch.rand(1)
    torch.manual_seed(0)
    outline = family_of(shape).outline(shape)
    assert torch.equal(torch.rand(1), drawn) and outline.config == shape
    assert all(parameter.is_meta for parameter in outline.parameters())
    described = [{n: (p.shape, p.dtype) for n, p in policy.named_parameters()} for policy in (blank, outline)]
    assert described[0] == described[1]
    buffers, wanted = dict(outline.named_buffers()), dict(blank.named_buffers())
    assert buffers and all(torch.equal(buffers[name], buffer) for name, buffer in wanted.items())


def test_a_parameter_of_two_modules_stays_one_in_an_outline():
    with outlined():
        shared = nn.Parameter(torch.zeros(3, 2))
        one, other = nn.Linear(2, 3, bias=False), nn.Linear(2, 3, bias=False)
        one.weight = shared
        other.weight = shared
    assert one.weight is other.weight and one.weight.is_meta
    assert not nn.Linear(2, 3).weight.is_meta


def test_a_policy_with_buffers_computed_from_parameters_is_refused_as_an_outline():
    class Derived(Kimi):
        def blank(self, shape):
            policy = super().blank(shape)
            policy.register_buffer("mean", next(policy.parameters()).mean(0))
            return policy

    with pytest.raises(ValueError, match="the buffer mean is computed from parameters"):
        Derived().outline(tiny_model())
