"""GRPO, GSPO, CISPO, corrections, reference KL, entropy: against float64 references without autograd."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cut_rows import split_row
from hypothesis import given, settings
from hypothesis import strategies as st

from parl.learn.advantage import group_advantages
from parl.learn.objective.base import Objective
from parl.learn.objective.cispo import Cispo
from parl.learn.objective.correction import correction_weights
from parl.learn.objective.entropy import entropy_stats
from parl.learn.objective.grpo import Grpo
from parl.learn.objective.gspo import Gspo
from parl.learn.objective.k25 import K25
from parl.learn.objective.loss import check_rows, policy_loss, statistic_names
from parl.learn.objective.reference import reference_kl
from parl.learn.rows import Row, denominator

N = 11.0
PLAIN: list[Objective] = [
    K25(tau=0.1),
    Grpo(clip_high=0.28),
    Gspo(clip_low=0.05, clip_high=0.08),
    Cispo(clip_low=0.3, clip_high=0.5),
]
CORRECTED: list[Objective] = [
    Grpo(correction="tis", correction_limits=(0.0, 1.3), kl=0.2),
    Grpo(correction="mis", correction_limits=(0.0, 3.0)),
    Grpo(correction="icepop", correction_limits=(0.7, 1.4)),
    Cispo(clip_low=0.3, clip_high=0.5, correction="icepop", correction_limits=(0.7, 1.4), kl=0.1),
    K25(kl=0.3),
]
LOCAL = [objective for objective in (*PLAIN, *CORRECTED) if not objective.whole_traces]


def label(objective: Objective) -> str:
    return f"{objective.name}-{getattr(objective, 'correction', 'none')}-{objective.kl:g}"


everything = pytest.mark.parametrize("objective", [*PLAIN, *CORRECTED], ids=label)


def batch(seed: int, shape=(3, 7)) -> dict[str, torch.Tensor]:
    """Random log-probs of learner now and before, engine and reference; advantages and a mask."""
    g = torch.Generator().manual_seed(seed)

    def normal(scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=g, dtype=torch.float64) * scale

    sampler = -torch.rand(shape, generator=g, dtype=torch.float64) * 3
    proximal = sampler + normal(0.2)
    out = {"sampler": sampler, "proximal": proximal, "logprobs": proximal + normal(0.3), "reference": sampler}
    out["reference"] = sampler + normal(0.5)
    out["advantages"] = torch.randn((shape[0], 1), generator=g, dtype=torch.float64).expand(shape).contiguous()
    return out | {"mask": torch.rand(shape, generator=g) < 0.7}


def loss_of(objective: Objective, data: dict[str, torch.Tensor], n: float = N):
    return policy_loss(objective, **data, denominator=n)


def gradient(objective: Objective, data: dict[str, torch.Tensor], n: float = N) -> torch.Tensor:
    new = data["logprobs"].clone().requires_grad_()
    return torch.autograd.grad(loss_of(objective, data | {"logprobs": new}, n)[0], new)[0]


def slow_weight(objective, differences: list[float], own: float) -> float:
    """The correction's weight of a token whose log-weight is ``own``, in a trace with these ``differences``."""
    kind = getattr(objective, "correction", "none")
    if kind == "none":
        return 1.0
    low, high = objective.limits
    w = math.prod(math.exp(d) for d in differences) if kind == "mis" else math.exp(own)
    return min(w, high) if kind == "tis" else w * (low <= w <= high)


def slow_policy(objective, ratios: list[float], own: float, advantage: float) -> float:
    """d/dlogπ of the maximised term of one token; ``ratios`` are its trace's."""
    if objective.name == "k25":
        inside = objective.log_ratio_min <= math.log(own) <= objective.log_ratio_max
        return own * advantage * inside - 2 * objective.tau * math.log(own)
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    if objective.name == "cispo":
        return min(max(own, low), high) * advantage
    if objective.name == "gspo":
        own = math.prod(ratios) ** (1 / len(ratios))  # d s/dlogπ of each of its |y| tokens: s/|y|, times |y|
    stopped = own > high if advantage > 0 else own < low
    return 0.0 if stopped else own * advantage


def slow_gradient(objective, data) -> torch.Tensor:
    new, engine, before, reference, advantages = (
        data[name].tolist() for name in ("logprobs", "sampler", "proximal", "reference", "advantages")
    )
    out = torch.zeros_like(data["logprobs"])
    old = before if objective.corrects else engine
    for b, row in enumerate(data["mask"].tolist()):
        places = [t for t, trained in enumerate(row) if trained]
        ratios = [math.exp(new[b][t] - old[b][t]) for t in places]
        differences = [before[b][t] - engine[b][t] for t in places]
        for ratio, difference, t in zip(ratios, differences, places, strict=True):
            weight = slow_weight(objective, differences, difference)
            rise = slow_policy(objective, ratios, ratio, advantages[b][t] * weight)
            pull = objective.kl * (1 - math.exp(reference[b][t] - new[b][t]))  # d/dlogπ of e^g − 1 − g, g = ref − new
            out[b, t] = (pull - rise) / N
    return out


@everything
def test_gradients_equal_a_closed_form_in_python_floats(objective):
    seen = torch.zeros(2)
    for seed in range(8):
        data = batch(seed)
        wanted = slow_gradient(objective, data)
        torch.testing.assert_close(gradient(objective, data), wanted, rtol=1e-11, atol=1e-13)
        share = loss_of(objective, data)[1]["masked"]
        seen += torch.tensor([share > 0, share < 1])
    assert (seen > 0).all()  # both sides of the clip were tried


@everything
def test_gradients_equal_finite_differences(objective):
    if objective.name == "cispo":
        pytest.skip("its gradient is not its value's: the weight is held still")
    data, step = batch(3), 1e-6
    got = gradient(objective, data)
    for place in data["mask"].nonzero().tolist():
        values = []
        for sign in (1, -1):
            new = data["logprobs"].clone()
            new[tuple(place)] += sign * step
            values.append(loss_of(objective, data | {"logprobs": new})[0])
        assert float((values[0] - values[1]) / (2 * step)) == pytest.approx(float(got[tuple(place)]), abs=1e-8)


@everything
def test_single_precision_is_enough(objective):
    data = batch(5)
    short = {name: values.float() if values.is_floating_point() else values for name, values in data.items()}
    assert float((gradient(objective, short) - slow_gradient(objective, data)).abs().max()) < 1e-6


@everything
def test_untrained_positions_may_hold_anything_and_get_nothing(objective):
    data = batch(1)
    wanted, mask = gradient(objective, data), data["mask"]
    assert (wanted[~mask] == 0).all() and (wanted[mask] != 0).any()
    for junk in (math.nan, math.inf, -math.inf):
        filled = torch.tensor(junk, dtype=torch.float64)
        dirty = {k: torch.where(mask, v, filled) if v.is_floating_point() else v for k, v in data.items()}
        assert torch.equal(gradient(objective, dirty), wanted)


@everything
def test_runaway_tokens_leave_everything_finite(objective):
    data = {name: torch.zeros(2, 3) for name in ("logprobs", "sampler", "proximal", "reference")}
    data["sampler"] = torch.tensor([[-300.0, 0, 0], [0, 0, 0]])
    data["proximal"] = torch.tensor([[0.0, 0, 0], [-300, 0, 0]])
    data["reference"] = torch.tensor([[0.0, 300, 0], [0, 0, -300]])
    data |= {"advantages": torch.tensor([[-1.0] * 3, [1.0] * 3]), "mask": torch.ones(2, 3, dtype=torch.bool)}
    loss, stats = loss_of(objective, data)
    assert set(stats) == {*statistic_names(objective), "tokens"}
    assert all(math.isfinite(float(value)) for value in (loss, *stats.values()))
    assert gradient(objective, data).isfinite().all()


def one(ratio: float, advantage: float) -> dict[str, torch.Tensor]:
    new = torch.tensor([[math.log(ratio)]], dtype=torch.float64)
    zero = torch.zeros_like(new)
    return {"logprobs": new, "sampler": zero, "advantages": zero + advantage, "mask": zero == 0}


@pytest.mark.parametrize("objective", [Grpo(clip_high=0.28), Gspo(clip_low=0.2, clip_high=0.28)], ids=label)
@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"),
    [(1.27, 1, True), (1.29, 1, False), (9.0, -1, True), (0.79, -1, False), (0.81, -1, True), (0.1, 1, True)],
)
def test_the_clip_stops_what_went_far_enough_and_nothing_that_went_astray(objective, ratio, advantage, moves):
    data = one(ratio, advantage)
    assert float(gradient(objective, data, 1.0)) == pytest.approx(-ratio * advantage if moves else 0.0)
    assert float(loss_of(objective, data)[1]["masked"]) == (not moves)


@pytest.mark.parametrize(("ratio", "weight"), [(0.01, 0.01), (1.0, 1.0), (4.9, 4.9), (5.1, 5.0), (80.0, 5.0)])
def test_cispo_limits_the_weight_and_drops_no_token(ratio, weight):
    for advantage in (1.0, -2.0):
        assert float(gradient(Cispo(), one(ratio, advantage), 1.0)) == pytest.approx(-weight * advantage)
    assert float(loss_of(Cispo(), one(ratio, 1.0))[1]["masked"]) == (ratio > 5)


def test_with_traces_of_one_length_gspo_is_the_papers_mean_over_traces():
    data = batch(2) | {"mask": torch.ones(3, 7, dtype=torch.bool)}
    objective = Gspo(clip_low=0.05, clip_high=0.08)
    log_ratio = (data["logprobs"] - data["sampler"]).mean(1)
    s, advantage = log_ratio.exp(), data["advantages"][:, 0]
    paper = torch.minimum(s * advantage, s.clamp(0.95, 1.08) * advantage).mean()
    assert float(loss_of(objective, data, n=21.0)[0]) == pytest.approx(-float(paper))


@pytest.mark.parametrize("objective", [*PLAIN, *CORRECTED[:4]], ids=label)
def test_on_policy_with_an_exact_engine_all_are_reinforce(objective):
    data = batch(4)
    same = dict.fromkeys(("logprobs", "proximal", "reference", "sampler"), data["sampler"])
    wanted = -torch.where(data["mask"], data["advantages"], 0.0) / N
    torch.testing.assert_close(gradient(objective, data | same), wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kind", "limits", "wanted", "share"),
    [
        ("tis", (0.0, 2.0), [[0.5, 1.0, 2.0], [4 / 3, 0.25, 1.0]], 1 / 5),
        ("icepop", (0.5, 2.0), [[0.5, 1.0, 0.0], [4 / 3, 0.0, 1.0]], 2 / 5),
        ("mis", (0.0, 1.4), [[0.0] * 3, [1 / 3] * 3], 3 / 5),
    ],
)
def test_corrections_weigh_by_hand(kind, limits, wanted, share):
    weights = torch.tensor([[0.5, 1.0, 3.0], [4 / 3, 0.25, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])  # the 7 is not of the trace
    got, changed = correction_weights(weights.log(), 0 * weights, mask, kind=kind, low=limits[0], high=limits[1])
    torch.testing.assert_close(got[mask], torch.tensor(wanted, dtype=torch.float64)[mask])
    assert float(changed) == pytest.approx(share)
    with pytest.raises(ValueError, match="no correction 'tsi'"):
        correction_weights(weights, weights, mask, kind="tsi", low=0.0, high=2.0)


def test_weights_have_no_gradient():
    new = torch.tensor([[0.3]], requires_grad=True)
    weights, _ = correction_weights(new, torch.zeros(1, 1), torch.ones(1, 1), kind="tis", low=0.0, high=9.0)
    assert not weights.requires_grad


def test_the_reference_term_is_zero_at_the_reference_and_positive_elsewhere():
    data = batch(6)
    assert float(reference_kl(data["reference"], data["reference"], data["mask"], denominator=N)) == 0.0
    assert float(reference_kl(data["logprobs"], data["reference"], data["mask"], denominator=N)) > 0


def test_its_expectation_over_a_policys_own_tokens_is_the_kl():
    policy, goal = (torch.tensor(values, dtype=torch.float64) for values in ([0.2, 0.5, 0.3], [0.4, 0.4, 0.2]))
    one_token = torch.ones(1)
    terms = [reference_kl(policy[[i]].log(), goal[[i]].log(), one_token, denominator=1.0) for i in range(3)]
    expected = sum(float(p) * float(term) for p, term in zip(policy, terms, strict=True))
    assert expected == pytest.approx(float((policy * (policy / goal).log()).sum()))


@pytest.mark.parametrize("likely", [True, False])
def test_the_entropys_drift_foretells_what_an_update_does(likely):
    """All tokens of one state, in expectation, against the entropy after a small natural-gradient step."""
    policy = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 0.0] if likely else [0.0, 0.0, 1.0], dtype=torch.float64)
    advantages = rewards - (policy * rewards).sum()

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return -(p * p.log()).sum()

    terms = [entropy_stats(entropy(policy)[None], policy[[i]].log(), advantages[[i]]) for i in range(3)]
    foretold = sum(float(p) * term["entropy_drift"] for p, term in zip(policy, terms, strict=True))
    rate = 1e-5
    after = torch.softmax(policy.log() + rate * advantages, 0)
    assert foretold == pytest.approx(float(entropy(after) - entropy(policy)) / rate, rel=1e-3)
    assert (foretold < 0) == likely


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        ({"correction": "tis"}, (0.0, 2.0)),
        ({"correction": "mis"}, (0.0, 2.0)),
        ({"correction": "icepop"}, (0.5, 5.0)),
        ({"correction": "icepop", "correction_limits": (0.25, 3.0)}, (0.25, 3.0)),
        ({"correction": "tis", "correction_limits": (0.0, 1.5)}, (0.0, 1.5)),
    ],
)
def test_corrections_have_their_published_limits_or_those_that_are_given(given: dict, limits: tuple[float, float]):
    assert Grpo(**given).limits == Cispo(**given).limits == limits


def test_the_entropys_drift_by_hand():
    entropy, logprobs, advantages = torch.tensor([1.5, 2.0]), torch.tensor([-0.5, -2.5]), torch.tensor([2.0, -1.0])
    assert entropy_stats(entropy, logprobs, advantages) == {"entropy": 3.5, "entropy_drift": -2.5}  # -(2 * 1 + 0.5)


def test_advantages_are_divided_by_the_groups_deviation_where_wanted():
    rewards = [1.0, 0.0, 0.5, 0.7]
    centred = np.array(rewards) - np.mean(rewards)
    np.testing.assert_allclose(group_advantages(rewards), centred)
    np.testing.assert_allclose(group_advantages(rewards, normalise_std=True), centred / np.std(rewards, ddof=1), 1e-5)
    assert group_advantages([0.5] * 4, normalise_std=True) == [0.0] * 4
    assert group_advantages([0.5], normalise_std=True) == [0.0]


def random_rows(seed: int, count: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        length = int(rng.integers(4, 20))
        mask = rng.random(length) < 0.6
        mask[0], mask[-1] = False, True
        fields = {n: (rng.standard_normal(length) * 0.3 - 1).astype(np.float32) for n in ("proximal", "reference")}
        sampler = np.where(mask, fields["proximal"] + 0.2 * rng.standard_normal(length), 0).astype(np.float32)
        rows.append(
            Row(
                key=("t", number, "0"),
                tokens=rng.integers(0, 7, length).astype(np.int32),
                mask=mask,
                logprobs=sampler,
                advantages=np.where(mask, rng.standard_normal(), 0).astype(np.float32),
                **fields,
            )
        )
    return rows


def model_gradient(objective: Objective, rows: list[Row], policy: torch.Tensor) -> torch.Tensor:
    """Gradient of a bigram policy's logits [7, 7], one row at a time with the denominator of all."""
    logits = policy.clone().requires_grad_()
    for row in rows:
        tokens = torch.from_numpy(row.tokens).long()
        scores = logits[tokens[:-1]].log_softmax(-1).gather(1, tokens[1:, None]).T
        data: dict[str, torch.Tensor] = {
            name: torch.from_numpy(np.array(getattr(row, field)))[None, 1:]
            for name, field in (
                ("sampler", "logprobs"),
                ("advantages", "advantages"),
                ("mask", "mask"),
                ("proximal", "proximal"),
                ("reference", "reference"),
            )
        }
        loss, _ = policy_loss(objective, scores, **data, denominator=denominator(rows) * 1.0)
        loss.backward()
    grad = logits.grad
    assert grad is not None
    return grad


def cut(rows: list[Row], pieces: Callable[[int], int]) -> list[Row]:
    return [part for i, row in enumerate(rows) for part in split_row(row, pieces(i))]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    objective=st.sampled_from(LOCAL),
    pieces=st.lists(st.integers(1, 20), min_size=4, max_size=4),
)
def test_splitting_rows_leaves_the_gradient_unchanged(seed: int, objective: Objective, pieces: list[int]):
    policy = torch.randn(7, 7, generator=torch.Generator().manual_seed(seed))
    rows = random_rows(seed, 4)
    parts = cut(rows, lambda i: pieces[i])
    check_rows(objective, parts)
    wanted = model_gradient(objective, rows, policy)
    assert float((model_gradient(objective, parts, policy) - wanted).norm() / wanted.norm()) < 1e-5


WHOLE = [Gspo(), Grpo(correction="mis")]


@pytest.mark.parametrize("objective", WHOLE, ids=label)
def test_parts_of_traces_are_refused_where_wholes_are_needed_because_they_would_change_the_gradient(objective):
    rows = random_rows(0, 4)
    parts = cut(rows, lambda _: 3)
    policy = torch.randn(7, 7, generator=torch.Generator().manual_seed(0))
    wanted = model_gradient(objective, rows, policy)
    assert float((model_gradient(objective, parts, policy) - wanted).norm() / wanted.norm()) > 1e-2
    check_rows(objective, rows)
    with pytest.raises(
        ValueError, match=r"\('t', 0, '0'\) comes in several rows, but objective.name=" + objective.name
    ):
        check_rows(objective, parts)
    with pytest.raises(ValueError, match="do not split"):  # made by hand
        check_rows(objective, [rows[0], rows[0]])


def test_missing_log_probs_are_named():
    data = batch(0)
    for objective, name in ((Grpo(correction="tis"), "proximal"), (K25(kl=0.1), "reference")):
        with pytest.raises(ValueError, match=f"needs the rows' {name} log-probs"):
            loss_of(objective, {key: value for key, value in data.items() if key != name})
    with pytest.raises(ValueError, match="denominator"):
        loss_of(Grpo(), data, n=0.0)
