"""Current limits of the learner, for a layout of ``parl plan`` and for a run on this machine. No torch.

What a rank holds is counted by ``parl.plan.held``; here it is compared with what is there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from model.family import Shape, family_of
from parl.config.schema import TrainerConfig
from parl.errors import UserError
from parl.learn.config import OptimizerConfig, ParallelConfig, check_parallel
from parl.plan.gpus import GB
from parl.plan.held import Held, held
from parl.plan.plan import NODE, Layout, weights

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def gaps(model: Shape, optimizer: OptimizerConfig, layout: Layout) -> Iterator[str]:
    """Why the learner may not train ``model`` in ``layout`` yet; never empty: no layout was run whole on GPUs."""
    yield "one rank was run on a GPU, a few layers at full width: several, over nccl, never were"
    if layout.gpus > NODE:
        yield f"its ranks were run on one machine only, and {layout.gpus} GPUs are {-(-layout.gpus // NODE)} nodes"
    parallel = parallel_of(layout)
    if model.weights_dtype == "float32":
        yield "policies of this family are float32: twice the weights that are counted here for bfloat16"
    try:
        check_parallel(layout.gpus, parallel, model, optimizer)
    except ValueError as error:
        yield f"a run's configuration refuses it: {error}"
    if layout.offload:
        yield "offloading was run on one GPU only, with another optimiser"


def parallel_of(layout: Layout) -> ParallelConfig:
    """``layout`` as a run's configuration."""
    return ParallelConfig(
        zero=layout.zero,  # type: ignore[arg-type]
        expert_parallel=layout.ep,
        offload="cpu" if layout.offload else "none",
        recompute=True,
    )


def check_memory(model: Shape, optimizer: OptimizerConfig, trainer: TrainerConfig) -> None:
    """UserError if a run's learner cannot fit: in a GPU's memory where ranks compute on GPUs, or in this machine's."""
    if os.environ.get("RAY_ADDRESS"):  # a cluster's memory is unknown here
        return
    cards = gpu_bytes() if trainer.device != "cpu" else []
    if cards:
        _check_cards(model, optimizer, trainer, min(cards))
    parts, there = host_bytes(model, optimizer, trainer, gpus=bool(cards)), machine_bytes()
    need = sum(parts.values())
    if need <= there:
        return
    raise UserError(
        f"model: {weights(model)[0] / 1e9:,.2f} B parameters need at least {size_of(need)} of memory here"
        f" ({_said(parts)}), and this machine has {size_of(there)}: take a smaller model, or fewer trainer.ranks; the"
        " learner runs on one machine (docs/scaling.md)"
    )


def _check_cards(model: Shape, optimizer: OptimizerConfig, trainer: TrainerConfig, there: int) -> None:
    found = _held(model, optimizer, trainer)
    if found is None or found.peak <= there:
        return
    raise UserError(
        f"trainer.parallel: each rank needs {size_of(found.peak)} on its GPU ({_said(found.parts)}), which has"
        f" {size_of(there)}: set trainer.parallel.zero higher, offload=cpu, recompute=true, more trainer.ranks, fewer"
        " trainer.micro_tokens, or train adapters (optimizer.lora='{}'); parl plan shows what each does"
    )


def _said(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {size_of(size)}" for name, size in parts.items() if size)


def _held(model: Shape, optimizer: OptimizerConfig, trainer: TrainerConfig) -> Held | None:
    """The count of one rank; None for a family that says no costs."""
    if family_of(model).costs(model) is None:
        return None
    return held(model, optimizer, trainer.parallel, ranks=trainer.ranks, tokens=trainer.micro_tokens)


def size_of(size: float) -> str:
    """``size`` bytes in readable units."""
    return f"{size / GB:,.1f} GB" if size >= GB / 10 else f"{size / 1e6:,.1f} MB"


def host_bytes(model: Shape, optimizer: OptimizerConfig, trainer: TrainerConfig, *, gpus: bool) -> dict[str, float]:
    """Lower bound of what a run takes of this machine's memory by part: all ranks, and the weights for engines.

    Without caches, copies, and the processes themselves. ``gpus``: ranks keep on GPUs what is not offloaded. Of
    activations, which the longest micro-batch alone fills, nothing is counted.
    """
    total, ranks = weights(model)[0], trainer.ranks
    engines = {"weights for engines": (2.0 if model.weights_dtype == "bfloat16" else 4.0) * total}
    found = _held(model, optimizer, trainer)
    if found is None:
        return {"weights": 4.0 * total} | engines
    kept = found.host if gpus else found.kept | found.host
    return {name: size * ranks for name, size in kept.items() if name != "update"} | engines


def gpu_bytes() -> list[int]:
    """Memory of each NVIDIA GPU of this machine, as its driver's ``nvidia-smi`` says; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    asked = [program, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # a driver that does not answer: torch will say so
        return []
    return [int(line) * 2**20 for line in said.split() if line.isdigit()]


def machine_bytes() -> int:
    """Memory of this machine, or of this process's container."""
    limits = [psutil.virtual_memory().total]
    for path in map(Path, _CGROUPS):
        text = path.read_text().strip() if path.is_file() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits)
