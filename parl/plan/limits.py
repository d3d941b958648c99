"""Current limits of the learner, for a layout of ``parl plan`` and for a run on this machine. No torch.

The learner holds float32 weights, gradients and optimiser states in host memory, on the ranks of one machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from model.family import Shape
from parl.config.schema import TrainerConfig
from parl.errors import UserError
from parl.learn.config import OptimizerConfig, ParallelConfig, check_parallel
from parl.plan.gpus import GB
from parl.plan.plan import NODE, Layout, count, weights

_FLOAT = 4  # bytes
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def gaps(model: Shape, optimizer: OptimizerConfig, layout: Layout) -> Iterator[str]:
    """Why the learner may not train ``model`` in ``layout`` yet; never empty: no layout was run whole on GPUs."""
    yield "one rank was run on a GPU, a few layers at full width: several, over nccl, never were"
    if layout.gpus > NODE:
        yield f"its ranks were run on one machine only, and {layout.gpus} GPUs are {-(-layout.gpus // NODE)} nodes"
    whole = _FLOAT * count(model).total * min(layout.gpus, NODE)
    yield (
        "weights and gradients are float32, twice what is counted here, and each rank builds the model whole in the"
        f" host's memory before it is split: {size_of(whole)} a node"
    )
    parallel = ParallelConfig(
        zero=layout.zero,  # type: ignore[arg-type]
        expert_parallel=layout.ep,
        offload="cpu" if layout.offload else "none",
        recompute=True,
    )
    try:
        check_parallel(layout.gpus, parallel, model, optimizer)
    except ValueError as error:
        yield f"a run's configuration refuses it: {error}"
    if layout.offload:
        yield "offloading was run on one GPU only, with another optimiser"


def check_memory(model: Shape, optimizer: OptimizerConfig, trainer: TrainerConfig) -> None:
    """UserError if a run's weights, gradients and optimiser states alone exceed this machine's memory."""
    parts, there = least_bytes(model, optimizer, trainer), machine_bytes()
    need = sum(parts.values())
    if need <= there or os.environ.get("RAY_ADDRESS"):  # a cluster's memory is unknown here
        return
    said = ", ".join(f"{name} {size_of(size)}" for name, size in parts.items() if size)
    raise UserError(
        f"model: {weights(model)[0] / 1e9:,.2f} B parameters need at least {size_of(need)} of memory here"
        f" ({said}), and this machine has {size_of(there)}: take a smaller model, or fewer trainer.ranks; the"
        " learner runs on one machine's CPUs (docs/scaling.md)"
    )


def size_of(size: float) -> str:
    """``size`` bytes in readable units."""
    return f"{size / GB:,.1f} GB" if size >= GB / 10 else f"{size / 1e6:,.1f} MB"


def least_bytes(model: Shape, optimizer: OptimizerConfig, trainer: TrainerConfig) -> dict[str, float]:
    """Lower bound of a run's memory by part, without activations, caches and copies.

    All ranks are processes here: split state exists once, unsplit state once per rank.
    """
    total, routed = weights(model)
    parallel = trainer.parallel
    whole = (total - routed) * trainer.ranks + routed * trainer.ranks / parallel.expert_parallel  # only experts split
    trained = 0.0 if optimizer.lora else 1.0  # adapters' own are small
    held = total if parallel.zero == 3 else whole
    gradients = trained * (total if parallel.zero >= 2 else whole)
    states = trained * (total if parallel.zero >= 1 else whole)  # one number per weight: Muon's; AdamW keeps two
    sizes = {"weights": held, "gradients": gradients, "optimiser states": states, "weights for engines": total}
    return {name: float(_FLOAT * size) for name, size in sizes.items()}


def machine_bytes() -> int:
    """Memory of this machine, or of this process's container."""
    limits = [psutil.virtual_memory().total]
    for path in map(Path, _CGROUPS):
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)
