"""``parl plan``: what a model needs on a cluster. Arithmetic only, no torch.

Counted exactly: parameters, bytes of weights, gradients and optimiser states, bytes that collectives move.
Estimated: activations, and a lower bound of the step's time from peak rates (``parl.plan.gpus``).
Assumptions:

- bfloat16 weights and gradients; AdamW with float32 master, mean and variance, 12 bytes per parameter;
  offloaded, these are in host memory. Adapters alone: weights, and no gradients or states of them; the adapters'
  own are small beside the weights and are not counted;
- expert parallelism: each routed expert is on 1 of ``ep`` GPUs and replicated gpus / ep times; all else is on
  every GPU. ZeRO 1 splits optimiser states over the replicas, 2 gradients too, 3 weights too (gathering a
  layer at a time);
- full recomputation: a layer keeps its input, and one layer's inside exists at a time. Logits of a
  micro-batch are float32 with their gradient;
- tokens are distributed evenly to experts, and every copy of a token is sent separately.

Units: bytes, seconds, FLOP; GB is 10^9 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from model.costs import Costs
from model.family import Shape, family_of
from parl.errors import UserError
from parl.plan.gpus import GB, Gpu

RESERVE = 5 * GB  # of each GPU: context, communication buffers, fragmentation; assumed, not measured
NODE = 8  # GPUs
_WEIGHT = _GRAD = 2  # bytes a parameter
_ADAM = 12
_PASSES = 3  # forward, recomputation, backward: each gathers weights and sends tokens to experts and back


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a training job is distributed, and its batch sizes."""

    gpus: int
    zero: int = 2
    ep: int = 1
    offload: bool = False  # optimiser states in the hosts' memory
    micro_tokens: int = 4096  # of one GPU in one pass
    step_tokens: int = 4_194_304  # of all GPUs in one optimiser step
    context: int = 32_768  # length of the rows, for attention's cost
    adapters: bool = False  # low-rank adapters alone are trained (optimizer.lora)

    def __str__(self) -> str:
        offload = "optimizer" if self.offload else "none"
        return f"--gpus {self.gpus} --zero {self.zero} --ep {self.ep} --offload {offload}"

    @property
    def passes(self) -> int:
        """Micro-batches of a GPU in one step."""
        return math.ceil(self.step_tokens / (self.gpus * self.micro_tokens))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What ``layout`` needs per GPU; see the module's assumptions."""

    layout: Layout
    memory: dict[str, float]  # part -> bytes on a GPU
    host: float  # bytes of a node's host memory
    all_to_all: float  # bytes that a GPU sends per step
    gathered: float  # ... all-gather, reduce-scatter and all-reduce
    seconds: dict[str, float]  # part -> lower bound per step

    @property
    def used(self) -> float:
        """Bytes on a GPU, without the reserve."""
        return sum(self.memory.values())


def count(shape: Shape) -> Costs:
    """Costs of a policy of ``shape``; UserError if its family does not give them."""
    found = family_of(shape).costs(shape)
    if found is None:
        raise UserError(f"the family {shape.home} does not say what its policies cost: give it a method costs")
    return found


def weights(shape: Shape) -> tuple[int, int]:
    """(total weights, of them in routed experts) of a policy; the latter 0 if its family gives no costs."""
    found = family_of(shape).costs(shape)
    return (found.total, found.routed) if found else (family_of(shape).parameters(shape), 0)


def check(config: Shape, layout: Layout) -> None:
    """UserError if ``layout`` is invalid for the model."""
    for name in ("gpus", "ep", "micro_tokens", "step_tokens", "context"):
        if getattr(layout, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(layout, name)}: must be 1 or more")
    if layout.zero not in (0, 1, 2, 3):
        raise UserError(f"--zero {layout.zero}: must be 0, 1, 2 or 3")
    if layout.offload and layout.zero == 0:
        raise UserError("--offload optimizer needs --zero 1 or more")
    if layout.ep not in degrees(config, layout.gpus):
        allowed = ", ".join(map(str, degrees(config, layout.gpus)))
        raise UserError(
            f"--ep {layout.ep}: must divide --gpus {layout.gpus} and the model's {count(config).experts} routed"
            f" experts: one of {allowed}"
        )


def degrees(config: Shape, gpus: int) -> list[int]:
    """Possible degrees of expert parallelism."""
    experts = count(config).experts
    return [d for d in range(1, min(gpus, experts) + 1) if gpus % d == 0 and experts % d == 0]


def plan(config: Shape, layout: Layout, gpu: Gpu) -> Plan:
    """What ``layout`` needs on ``gpu``s; UserError if it is invalid."""
    check(config, layout)
    trained = not layout.adapters
    states = _ADAM * _held(config, layout, split=layout.zero >= 1) * trained
    memory = {
        "weights": _WEIGHT * _held(config, layout, split=layout.zero >= 3),
        "gradients": _GRAD * _held(config, layout, split=layout.zero >= 2) * trained,
        "optimiser states": 0.0 if layout.offload else states,
        "gathered layer": _gathered_layer(config, layout),
        **_activations(config, layout),
    }
    host = states * min(NODE, layout.gpus) if layout.offload else 0.0
    sent, gathered = _all_to_all(config, layout), _collectives(config, layout)
    seconds = _seconds(config, layout, gpu, sent, gathered)
    return Plan(layout=layout, memory=memory, host=host, all_to_all=sent, gathered=gathered, seconds=seconds)


def fits(plan: Plan, gpu: Gpu, host: float) -> bool:
    """Whether GPUs, and hosts of ``host`` bytes per node, can hold it."""
    return plan.used + RESERVE <= gpu.memory and plan.host <= host


def nearest(config: Shape, layout: Layout, gpu: Gpu, host: float) -> Plan | None:
    """The layout that fits with the fewest changes, preferably on as many GPUs; then the fastest; or None."""
    gpus = layout.gpus
    while gpus <= 65_536:
        fitting = [p for p in _variants(config, replace(layout, gpus=gpus), gpu) if fits(p, gpu, host)]
        if fitting:
            return min(fitting, key=lambda p: (_changes(p.layout, layout), sum(p.seconds.values())))
        gpus *= 2
    return None


def _variants(config: Shape, layout: Layout, gpu: Gpu) -> Iterator[Plan]:
    for ep in degrees(config, layout.gpus):
        for zero in (0, 1, 2, 3):
            for offload in (False, True) if zero else (False,):
                yield plan(config, replace(layout, ep=ep, zero=zero, offload=offload), gpu)


def _changes(one: Layout, two: Layout) -> int:
    return sum(getattr(one, name) != getattr(two, name) for name in ("ep", "zero", "offload"))


def _held(config: Shape, layout: Layout, *, split: bool) -> float:
    """Parameters that a GPU holds state of, ``split`` over replicas or not."""
    n = count(config)
    if split:
        return n.total / layout.gpus  # routed: / ep, then over gpus / ep replicas
    return n.routed / layout.ep + n.rest


def _gathered_layer(config: Shape, layout: Layout) -> float:
    """ZeRO 3: the largest layer's weights, whole except for expert parallelism."""
    if layout.zero < 3:
        return 0.0
    n = count(config)
    routed = n.routed / max(n.routed_layers, 1) / layout.ep
    blocks = (n.rest - n.ends) / n.layers
    return _WEIGHT * max(routed + blocks, n.embedding)


def _activations(config: Shape, layout: Layout) -> dict[str, float]:
    """Bytes with full recomputation, in bfloat16: layers' inputs, one layer's inside, logits; an estimate."""
    n, tokens = count(config), layout.micro_tokens
    return {
        "activations: layers' inputs": 2.0 * tokens * n.hidden * n.layers,
        "activations: one layer's inside": 4.0 * tokens * n.inside,
        "activations: logits": 8.0 * tokens * n.vocabulary,
    }


def _all_to_all(config: Shape, layout: Layout) -> float:
    """Bytes sent to other GPUs' experts per step: each copy of a token out and back, in every pass."""
    n = count(config)
    copy = 2 * n.hidden * n.chosen * n.routed_layers
    away = 1 - 1 / layout.ep
    return 2 * _PASSES * copy * away * layout.micro_tokens * layout.passes


def _collectives(config: Shape, layout: Layout) -> float:
    """Bytes that a GPU sends per step to keep replicas equal: gradients, and weights split by ZeRO."""
    n, replicas = count(config), layout.gpus / layout.ep
    once = n.rest * (1 - 1 / layout.gpus) + n.routed / layout.ep * (1 - 1 / replicas)  # parameters, through a ring
    passes = layout.passes
    if layout.adapters:
        return 0.0
    if layout.zero == 3:  # weights gathered in each pass of each micro-batch, gradients scattered after it
        return once * (_PASSES * _WEIGHT + _GRAD) * passes
    if layout.zero == 2:
        return once * (_GRAD * passes + _WEIGHT)
    return once * (_GRAD + _WEIGHT)  # scatter, then gather: gradients at 0, weights at 1


def _seconds(config: Shape, layout: Layout, gpu: Gpu, sent: float, gathered: float) -> dict[str, float]:
    """Lower bounds of a step's parts, without offloading's transfers and the hosts' arithmetic."""
    n = count(config)
    tokens = layout.micro_tokens * layout.passes
    attention = 2 * n.heads * (layout.context / 2) * n.layers  # causal: half the rows' length on average
    products = _PASSES + (not layout.adapters)  # the backward pass computes twice, unless the weights are frozen
    flop = tokens * (2 * n.active + attention) * products
    resident = n.routed / layout.ep + n.rest - n.unread
    read = _WEIGHT * resident * products * layout.passes  # each product reads, or writes, a matrix once
    compute = max(flop / gpu.flops, read / gpu.copy)
    states = 2 * _ADAM * _held(config, layout, split=layout.zero >= 1) / gpu.copy
    states *= not (layout.offload or layout.adapters)
    return {
        "compute": compute,
        "optimiser": states,
        "all-to-all": sent / (gpu.inside if layout.ep <= NODE else gpu.tokens),
        "all-gather, reduce-scatter": gathered / (gpu.inside if layout.gpus <= NODE else gpu.outside),
    }
