"""Log-probs of given tokens in chunks: the same numbers and gradients, in memory for one chunk."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.blocks.logprobs import CHUNK, Head, token_logprobs

M, D, V = 53, 16, 211
SMALL = 5 * V + 3  # five tokens at a time: the last chunk is shorter


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(M, D, generator=generator), torch.randn(V, D, generator=generator)
    slope = torch.randn(M, generator=generator)
    targets = torch.randint(0, V, (M,), generator=generator)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets, slope.to(dtype)


def exact(temperature: float) -> tuple[Tensor, ...]:
    """Log-probs, entropies and both gradients in float64, written explicitly."""
    hidden, weight, targets, slope = inputs(torch.float64)
    logits = hidden @ weight.T / temperature
    logprobs = logits - logits.exp().sum(-1, keepdim=True).log()
    found = logprobs[torch.arange(M), targets]
    (found * slope).sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return found.detach(), -(logprobs.exp() * logprobs).sum(-1).detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [CHUNK, SMALL, 1])
def test_values_and_gradients_are_those_of_float64_to_1e_5(chunk: int, temperature: float):
    hidden, weight, targets, slope = inputs()
    found, entropy = token_logprobs(hidden, weight, targets, temperature, chunk)
    (found * slope).sum().backward()
    assert not entropy.requires_grad
    for ours, wanted in zip((found, entropy, hidden.grad, weight.grad), exact(temperature), strict=True):
        assert ours is not None
        assert float((ours.double() - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


def test_the_chunked_gradient_is_that_of_finite_differences():
    hidden, weight, targets, _ = inputs(torch.float64)
    few = slice(0, 11)

    def run(h: Tensor, w: Tensor) -> Tensor:
        return token_logprobs(h, w, targets[few] % 20, 0.9, chunk=3 * 20)[0]

    assert torch.autograd.gradcheck(run, (hidden[few].detach().requires_grad_(), weight[:20].detach().requires_grad_()))


def test_one_chunk_is_plain_autograd_bit_for_bit():
    hidden, weight, targets, slope = inputs()
    found, entropy = token_logprobs(hidden, weight, targets)
    (found * slope).sum().backward()
    h, w = hidden.detach().requires_grad_(), weight.detach().requires_grad_()
    logprobs = torch.log_softmax(torch.nn.functional.linear(h, w).float() / 1.0, dim=-1)
    plain = logprobs.gather(1, targets[:, None]).squeeze(1)
    (plain * slope).sum().backward()
    assert hidden.grad is not None and h.grad is not None and weight.grad is not None and w.grad is not None
    assert torch.equal(found, plain) and torch.equal(hidden.grad, h.grad) and torch.equal(weight.grad, w.grad)
    assert torch.equal(entropy, -(logprobs.detach().exp() * logprobs.detach()).sum(-1))


def test_nothing_is_asked_of_frozen_weights():
    hidden, weight, targets, slope = inputs()
    token_logprobs(hidden, weight.detach(), targets, 1.0, SMALL)[0].mul(slope).sum().backward()
    assert hidden.grad is not None and bool(hidden.grad.any())
    token_logprobs(hidden.detach(), weight, targets, 1.0, SMALL)[0].mul(slope).sum().backward()
    assert weight.grad is not None and bool(weight.grad.any())


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and (key := tensor.untyped_storage()._cdata) not in self._known:
                self._known.add(key)
                size = tensor.untyped_storage().nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(tensor, self._freed, key, size)
        return out

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def peak_bytes(tokens: int, vocabulary: int, chunk: int) -> int:
    """Peak bytes in a forward and a backward pass."""
    head, hidden = Head(8, vocabulary), torch.randn(tokens, 8, requires_grad=True)
    targets = torch.zeros(tokens, dtype=torch.long)
    with Live() as live:
        logprobs, _ = head(hidden, targets, 1.0, chunk)
        logprobs.sum().backward()
    return live.peak


def test_memory_does_not_hold_tokens_times_vocabulary():
    tokens, vocabulary = 1024, 4096
    whole, chunk = 4 * tokens * vocabulary, 64 * vocabulary
    at_once = peak_bytes(tokens, vocabulary, chunk=2 * tokens * vocabulary)
    chunked = peak_bytes(tokens, vocabulary, chunk=chunk)
    assert at_once >= 3 * whole  # what it was: several float32 copies
    assert chunked <= 6 * 4 * chunk + 4 * 4 * 8 * (tokens + vocabulary)  # copies of a chunk, and the gradients
    assert chunked < whole / 2
    assert peak_bytes(4 * tokens, vocabulary, chunk=chunk) < 1.5 * chunked  # four times the tokens
