"""What a micro-batch adds to a step: the loss, and sums for the metrics that stay on the device.

Nothing here waits for a GPU; :func:`read` does, once a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from parl.learn.batch import Batch
from parl.learn.objective.base import Objective
from parl.learn.objective.common import k3
from parl.learn.objective.entropy import entropy_stats
from parl.learn.objective.loss import policy_loss, statistic_names
from parl.learn.objective.sft import sft_loss

Sums = dict[str, Any]  # float64 tensors, or 0.0 before the first batch; by the metric's name
_LARGEST = "logprob_gap"  # the largest of the batches, not their sum


def metric_names(objective: Objective) -> tuple[str, ...]:
    """The metrics of :func:`policy_terms`."""
    return (*statistic_names(objective), "entropy", "entropy_drift", _LARGEST, "mismatch_kl")


def policy_terms(
    forward: Callable[..., tuple[Tensor, Tensor]],
    batch: Batch,
    objective: Objective,
    *,
    denominator: float,
    temperature: float,
) -> tuple[Tensor, Sums]:
    """The loss of ``objective`` over ``batch``, and what :func:`metric_names` are summed from."""
    logprobs, entropy = forward(**batch.inputs, temperature=temperature)
    loss, stats = _objective_loss(objective, batch, logprobs, denominator)
    share = len(logprobs) / denominator
    sums: Sums = {name: stats[name].detach().double() * share for name in statistic_names(objective)}
    for name, value in entropy_stats(entropy, logprobs, batch.gather("advantages")).items():
        sums[name] = value.double() / denominator
    drift = logprobs.detach() - batch.gather("logprobs")
    sums[_LARGEST] = drift.abs().max().double() if len(drift) else drift.new_zeros((), dtype=torch.float64)
    sums["mismatch_kl"] = k3(drift).sum().double() / denominator
    return loss, sums


def text_terms(
    forward: Callable[..., tuple[Tensor, Tensor]], batch: Batch, *, denominator: float
) -> tuple[Tensor, Sums]:
    """The loss of imitating ``batch``; the tokens that agents wrote, and those of a probability above 1/2."""
    logprobs, _ = forward(**batch.inputs)
    weights = batch.gather("weights")
    acted = weights == 1
    right = (logprobs.detach() > math.log(0.5)) & acted
    return sft_loss(logprobs, weights, denominator=denominator), {
        "right": right.sum().double(),
        "acted": acted.sum().double(),
    }


def add(totals: Sums, sums: Sums) -> None:
    """Add a batch's ``sums`` to ``totals``."""
    for name, value in sums.items():
        largest = name == _LARGEST and isinstance(totals[name], Tensor)
        totals[name] = torch.maximum(totals[name], value) if largest else totals[name] + value


def read(totals: Mapping[str, Any]) -> dict[str, float]:
    """``totals`` as numbers, by one copy from the device."""
    tensors = {name: value for name, value in totals.items() if isinstance(value, Tensor)}
    if not tensors:
        return dict(totals)
    return {**totals, **dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))}


def _objective_loss(
    objective: Objective, batch: Batch, logprobs_M: Tensor, denominator: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a micro-batch and its means; trained tokens are flat, [M], except for whole-trace objectives."""
    first = batch.rows[0]
    names = ["logprobs", "advantages"] + [n for n in ("proximal", "reference") if getattr(first, n, None) is not None]
    fields = {name: batch.gather(name) for name in names}
    mask = torch.ones_like(logprobs_M, dtype=torch.bool)
    if objective.whole_traces:
        logprobs_M, mask, *values = (
            pad_sequence(batch.by_row(values_M), batch_first=True) for values_M in (logprobs_M, mask, *fields.values())
        )
        fields = dict(zip(fields, values, strict=True))
    sampler, advantages = fields.pop("logprobs"), fields.pop("advantages")
    return policy_loss(objective, logprobs_M, sampler, advantages, mask, denominator=denominator, **fields)
