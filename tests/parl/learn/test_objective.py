"""Gradients of the objectives: against a float64 reference, finite differences, REINFORCE, and split rows."""

import math

import numpy as np
import pytest
import torch
from cut_rows import split_row

from parl.learn.objective.k25 import K25
from parl.learn.objective.sft import sft_loss
from parl.learn.rows import Row, denominator

torch.set_num_threads(1)
LIMITS = {"log_ratio_min": -0.5, "log_ratio_max": 0.4, "tau": 0.1}


def batch(seed=0, shape=(3, 7), dtype=torch.float64, spread=0.6):
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(shape, generator=generator, dtype=torch.float64) * 3
    new = old + torch.randn(shape, generator=generator, dtype=torch.float64) * spread
    advantages = torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(shape, generator=generator) < 0.7
    return new.to(dtype), old.to(dtype), advantages.to(dtype), mask


def reference_gradient(new, old, advantages, mask, n, log_ratio_min, log_ratio_max, tau):
    """dL/dlogπ of Eq. 1, token by token in Python floats: −(1/N) (ρ A [α <= log ρ <= β] − 2 τ log ρ)."""
    out = torch.zeros_like(new, dtype=torch.float64)
    for position in mask.nonzero().tolist():
        i = tuple(position)
        log_ratio = float(new[i]) - float(old[i])
        policy = math.exp(log_ratio) * float(advantages[i]) if log_ratio_min <= log_ratio <= log_ratio_max else 0.0
        out[i] = -(policy - 2 * tau * log_ratio) / n
    return out


def gradient(new, old, advantages, mask, n=11.0, **limits):
    new = new.clone().requires_grad_()
    loss, _ = K25(**LIMITS | limits).loss(new, old, advantages, mask, denominator=n)
    return torch.autograd.grad(loss, new)[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_gradient_equals_a_float64_reference(dtype, tolerance):
    for seed in range(5):
        new, old, advantages, mask = batch(seed, dtype=dtype)
        wanted = reference_gradient(new, old, advantages, mask, 11.0, **LIMITS)
        torch.testing.assert_close(
            gradient(new, old, advantages, mask).double(), wanted, atol=tolerance, rtol=tolerance
        )


def test_the_gradient_equals_finite_differences():
    new, old, advantages, mask = batch(3)
    distance = torch.minimum((new - old - LIMITS["log_ratio_min"]).abs(), (new - old - LIMITS["log_ratio_max"]).abs())
    assert distance.min() > 1e-4  # Clip has a kink there
    loss = K25(**LIMITS).loss
    torch.autograd.gradcheck(lambda x: loss(x, old, advantages, mask, denominator=5.0)[0], new.requires_grad_())


def test_the_loss_by_hand():
    new = torch.tensor([[0.1, 1.0, -2.0, 7.0]], dtype=torch.float64)
    advantages = torch.tensor([[2.0, 1.0, -1.0, 5.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    loss, stats = K25(**LIMITS).loss(new, torch.zeros_like(new), advantages, mask, denominator=4.0)
    clipped = 2 * math.exp(0.1) + math.exp(0.4) - math.exp(-0.5)
    assert loss.item() == pytest.approx(-(clipped - 0.1 * (0.01 + 1 + 4)) / 4)
    ratios = [math.exp(0.1), math.exp(1), math.exp(-2)]
    assert stats["ratio"].item() == pytest.approx(sum(ratios) / 3)
    assert stats["masked"].item() == pytest.approx(2 / 3)
    assert stats["kl"].item() == pytest.approx((sum(ratios) - 3 - (0.1 + 1 - 2)) / 3)
    assert stats["tokens"].item() == 3
    assert not any(value.requires_grad for value in stats.values())


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [-0.6, 0.5])
def test_tokens_outside_the_interval_get_no_policy_gradient_whatever_the_advantages_sign(sign, log_ratio):
    new = torch.tensor([[log_ratio]], dtype=torch.float64)
    advantages = torch.full_like(new, 3 * sign)
    mask = torch.ones_like(new, dtype=torch.bool)
    assert gradient(new, torch.zeros_like(new), advantages, mask, tau=0.0).item() == 0.0
    # the τ term still draws them back: descent lowers |log ρ|
    assert gradient(new, torch.zeros_like(new), advantages, mask, tau=0.1, n=1.0).item() == pytest.approx(
        0.2 * log_ratio
    )


def test_both_ends_of_the_interval_belong_to_it():
    new = torch.tensor([[-0.5, 0.5]], dtype=torch.float64)
    ends = gradient(
        new, torch.zeros_like(new), torch.ones_like(new), torch.ones(1, 2), tau=0.0, log_ratio_max=0.5, n=1.0
    )
    torch.testing.assert_close(ends, -new.exp())


def test_untrained_positions_may_hold_anything():
    new, old, advantages, mask = batch(1)
    wanted = gradient(new, old, advantages, mask)
    assert (wanted[~mask] == 0).all()
    for junk in (float("nan"), float("inf"), -float("inf")):
        dirty = [torch.where(mask, x, torch.tensor(junk, dtype=x.dtype)) for x in (new, old, advantages)]
        assert torch.equal(gradient(*dirty, mask), wanted)


def test_a_runaway_ratio_overflows_nothing():
    new, old = torch.zeros(1, 1), torch.full((1, 1), -200.0)
    assert gradient(new, old, torch.ones(1, 1), torch.ones(1, 1), tau=0.0).item() == 0.0
    loss, stats = K25(**LIMITS).loss(new, old, torch.ones(1, 1), torch.ones(1, 1), denominator=1.0)
    assert all(math.isfinite(value.item()) for value in (loss, *stats.values()))


def test_impossible_limits_and_denominators_are_refused():
    new, old, advantages, mask = batch()
    with pytest.raises(ValueError, match="log_ratio_min"):
        gradient(new, old, advantages, mask, log_ratio_min=0.5)
    with pytest.raises(ValueError, match="denominator"):
        gradient(new, old, advantages, mask, n=0.0)


class ToyLM(torch.nn.Module):
    """Embedding, causal running sum, linear: the logits at a position depend on the whole prefix."""

    def __init__(self, vocabulary=11, width=6):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(vocabulary, width, dtype=torch.float64)
        self.head = torch.nn.Linear(width, vocabulary, dtype=torch.float64)

    def logprobs(self, tokens_BT):
        """log π(token | tokens before it); 0 at the first position."""
        hidden = torch.tanh(self.embedding(tokens_BT).cumsum(1))
        scores = self.head(hidden[:, :-1]).log_softmax(-1).gather(-1, tokens_BT[:, 1:, None])[..., 0]
        return torch.nn.functional.pad(scores, (1, 0))


def random_rows(model, count=3, length=12, drift=0.3):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        tokens = rng.integers(0, 11, length + i).astype(np.int32)
        mask = rng.random(length + i) < 0.6
        mask[0] = False
        now = model.logprobs(torch.tensor(tokens)[None].long())[0].detach().numpy()
        old = np.where(mask, now + drift * rng.standard_normal(length + i), 0).astype(np.float32)
        advantages = np.where(mask, rng.standard_normal(), 0).astype(np.float32)
        rows.append(Row(key=("t", i, "0"), tokens=tokens, mask=mask, logprobs=old, advantages=advantages))
    return rows


def parameter_gradient(model, rows, micro_batch, n=None):
    """Accumulated over padded micro-batches, as the learner does it, with one global denominator."""
    n = n or denominator(rows)
    model.zero_grad()
    for start in range(0, len(rows), micro_batch):
        part = rows[start : start + micro_batch]
        width = max(len(row.tokens) for row in part)
        tokens, old, advantages, mask = (
            torch.tensor(np.stack([np.pad(getattr(row, name), (0, width - len(row.tokens))) for row in part]))
            for name in ("tokens", "logprobs", "advantages", "mask")
        )
        K25(**LIMITS).loss(model.logprobs(tokens.long()), old, advantages, mask, denominator=n)[0].backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("micro_batch", [1, 2, 64])
@pytest.mark.parametrize("pieces", [(2, 2, 2), (1, 3, 5), (64, 1, 2), (64, 64, 64)])
def test_splitting_an_episode_in_k_rows_leaves_the_gradient_unchanged(pieces, micro_batch):
    model = ToyLM()
    rows = random_rows(model)
    whole = parameter_gradient(model, rows, micro_batch=64)
    parts = [part for row, k in zip(rows, pieces, strict=True) for part in split_row(row, k)]
    assert len(parts) > len(rows)
    assert whole.abs().max() > 1e-3
    torch.testing.assert_close(parameter_gradient(model, parts, micro_batch), whole, rtol=1e-10, atol=1e-13)


def test_on_policy_the_gradient_is_reinforce_with_the_mean_baseline():
    model = ToyLM()
    rows = random_rows(model, drift=0.0)
    rewards = [1.0, 0.25, 0.1]
    model.zero_grad()
    n, mean = denominator(rows), sum(rewards) / 3
    for row, reward in zip(rows, rewards, strict=True):
        row.advantages = np.where(row.mask, np.float32(reward - mean), np.float32(0))
        row.logprobs = model.logprobs(torch.tensor(row.tokens)[None].long())[0].detach().numpy() * row.mask
        scores = model.logprobs(torch.tensor(row.tokens)[None].long())[0]
        (-(reward - mean) * scores[torch.tensor(row.mask)].sum() / n).backward()
    reinforce = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(parameter_gradient(model, rows, 64), reinforce, rtol=1e-6, atol=1e-9)


def test_sft_is_weighted_cross_entropy_with_a_given_denominator():
    logprobs = torch.tensor([[-1.0, -2.0, float("-inf")], [-3.0, -4.0, -5.0]], requires_grad=True)
    weights = torch.tensor([[1.0, 0.1, 0.0], [0.0, 1.0, 0.0]])
    loss = sft_loss(logprobs, weights, denominator=4.2)
    assert loss.item() == pytest.approx((1 + 0.2 + 4) / 4.2)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, -weights / 4.2)


def test_sft_gradients_add_up_over_micro_batches():
    logprobs, _, _, mask = batch()
    weights = torch.where(mask, 1.0, 0.1).double()
    whole = torch.autograd.grad(sft_loss(logprobs.requires_grad_(), weights, denominator=9.0), logprobs)[0]
    parts = [
        torch.autograd.grad(sft_loss(logprobs[i : i + 1], weights[i : i + 1], denominator=9.0), logprobs)[0]
        for i in range(3)
    ]
    torch.testing.assert_close(sum(parts), whole)
