"""The router's losses in C++ against the reference in float64: values, gradients, bits whatever the threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.kernels import cpu_ops, reference

pytestmark = pytest.mark.skipif(not cpu_ops.usable(torch.float32), reason="no C++ compiler")


def inputs(tokens: int, experts: int, top_k: int, sequences: int, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(tokens, experts, generator=g)
    ids = torch.rand(tokens, experts, generator=g).topk(top_k).indices.to(torch.int16)
    sequence = torch.randint(-1, sequences, (tokens,), generator=g, dtype=torch.int32)
    return logits, ids, sequence, sequences


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 40),
    st.sampled_from([1, 2, 7, 8, 19, 64, 384]),
    st.integers(1, 8),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_loss_and_gradient_are_those_of_float64(tokens: int, experts: int, top_k: int, sequences: int, seed: int):
    logits, *rest = inputs(tokens, experts, min(top_k, experts), sequences, seed)
    loss, wanted = (f.router_loss_fwd(x, *rest, 0.3, 0.1) for f, x in ((cpu_ops, logits), (reference, logits.double())))
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-6)
    slope = torch.tensor(0.7)
    grad = cpu_ops.router_loss_bwd(slope, logits, *rest, 0.3, 0.1)
    exact = reference.router_loss_bwd(slope.double(), logits.double(), *rest, 0.3, 0.1)
    torch.testing.assert_close(grad.double(), exact, rtol=1e-4, atol=1e-6)


def test_the_number_of_threads_changes_no_bit():
    logits, *rest = inputs(3000, 16, 2, 9)
    found = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            one = torch.ones(())
            found.append(
                (
                    cpu_ops.router_loss_fwd(logits, *rest, 0.3, 0.1),
                    cpu_ops.router_loss_bwd(one, logits, *rest, 0.3, 0.1),
                )
            )
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for pair in found for a, b in zip(pair, found[0], strict=True))


def test_tokens_of_no_sequence_count_nowhere():
    logits, ids, _, _ = inputs(5, 8, 2, 1)
    nowhere = torch.full((5,), -1, dtype=torch.int32)
    assert cpu_ops.router_loss_fwd(logits, ids, nowhere, 1, 1.0, 1.0) == 0
    assert not cpu_ops.router_loss_bwd(torch.ones(()), logits, ids, nowhere, 1, 1.0, 1.0).any()


def test_sequences_and_experts_that_do_not_exist_are_refused():
    logits, ids, sequence, _ = inputs(5, 8, 2, 3)
    with pytest.raises(ValueError, match="sequences up to 7 of 3"):
        cpu_ops.router_loss_fwd(logits, ids, torch.full_like(sequence, 7), 3, 1.0, 1.0)
    with pytest.raises(ValueError, match="experts up to 9 of 8"):
        cpu_ops.router_loss_bwd(torch.ones(()), logits, torch.full_like(ids, 9), sequence, 3, 1.0, 1.0)
