"""Policies that weights are loaded into: nothing is drawn, and their memory is not touched."""

from __future__ import annotations

import torch
from tiny import tiny_model
from torch import nn

from model.arrays import fill
from model.blocks.undrawn import Undrawn
from model.decoder import export_weights
from model.family import family_of


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
