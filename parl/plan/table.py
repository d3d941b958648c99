"""Output of ``parl plan``: the model, the layout's memory and traffic, a lower bound on time. No torch."""

from __future__ import annotations

import difflib
from pathlib import Path

from rich.table import Table

from model.family import Shape
from parl.config.family import family_at
from parl.config.load import load_config
from parl.errors import UserError
from parl.learn.config import OptimizerConfig
from parl.plan.gpus import GB, Given, Gpu, find_gpu
from parl.plan.held import Held, held
from parl.plan.limits import gaps, parallel_of, size_of
from parl.plan.plan import RESERVE, Layout, Plan, check, count, degrees, fits, nearest, plan
from parl.presets import preset, presets_folder
from parl.shown.terminal import cell, console

MODELS = presets_folder() / "models"
NOTHING = Given()


def print_plan(
    model: str,
    gpu: str,
    *,
    host_gb: float,
    gpus: int,
    zero: int,
    ep: int,
    offload: str,
    given: Given = NOTHING,
    **sizes: int,
) -> None:
    """Print the plan of a layout, and what the learner does not support yet; ``ep`` 0: the largest degree.

    ``given``: values of the card ``gpu`` instead of the table's. UserError if it is invalid, or cannot fit.
    """
    config, optimizer = read_model(model)
    card = find_gpu(gpu, given)
    if offload not in ("none", "optimizer"):
        raise UserError(f"--offload {offload}: must be one of none, optimizer")
    if not 0 < host_gb < 1e9:
        raise UserError(f"--host-gb {host_gb:g}: must be a number above 0")
    ep = ep or max(degrees(config, max(gpus, 1)))
    adapters = optimizer.lora is not None
    layout = Layout(gpus=gpus, zero=zero, ep=ep, offload=offload == "optimizer", adapters=adapters, **sizes)
    check(config, layout)
    made = plan(config, layout, card)
    out = console()
    out.print(_model_table(model, config))
    out.print(_layout_table(made, gpu, card))
    out.print(cell(f"{gpu}: {card.source}. Assumptions: parl/plan/plan.py.", "dim"))
    own = held(config, optimizer, parallel_of(layout), ranks=gpus, tokens=layout.micro_tokens)
    out.print(_held_table(own, config, card))
    out.print("the learner cannot do this yet:", style="bold", markup=False)
    for gap in gaps(config, optimizer, layout):
        out.print(f"- {gap}", markup=False)
    if not fits(made, card, host_gb * GB):
        raise UserError(_refusal(config, made, card, host_gb * GB))
    out.print("GPU memory would suffice by this count; it is no promise that parl trains it", markup=False)


def read_model(model: str) -> tuple[Shape, OptimizerConfig]:
    """The shape named by MODEL - in configs/models, a YAML file, or a folder - and its optimiser."""
    path = Path(model)
    path = path.parent if path.name == "config.json" and path.is_file() else path
    if path.is_dir():
        try:
            return family_at(path).read_shape(path), OptimizerConfig()
        except (ValueError, FileNotFoundError) as error:
            raise UserError(str(error)) from None
    named, path = MODELS / f"{model}.yaml", preset(path)
    if not path.is_file() and not named.is_file():
        names = sorted(file.stem for file in MODELS.glob("*.yaml"))
        close = difflib.get_close_matches(model, names, n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise UserError(f"no model {model}: neither a file, nor a folder with config.json, nor one of"
                        f" {', '.join(names)}{meant}")  # fmt: skip
    config = load_config(path if path.is_file() else named)
    return config.model.shape, config.optimizer


def _model_table(model: str, config: Shape) -> Table:
    n = count(config)
    cache, path = n.cache, Path(model)
    name = path.parent.name if path.name == "config.json" else path.stem
    table = Table(
        title=cell(name),
        show_header=False,
        title_justify="left",
    )
    table.add_row("parameters", f"{_count(n.total)} ({n.total:,})")
    table.add_row("of them in routed experts", _count(n.routed))
    if config.pictures:
        table.add_row("not planned for", "tower and projector, which a token of text does not pass")
    table.add_row("active a token", f"{_count(n.active)}, {_count(n.active + n.embedding)} with the input embedding")
    longest = config.max_position_embeddings
    table.add_row("KV cache a token", f"{cache:,} B in bfloat16; {_gib(cache * longest)} at {longest:,} tokens")
    return table


def _layout_table(made: Plan, name: str, gpu: Gpu) -> Table:
    layout = made.layout
    table = Table("on each GPU", "", title=f"{layout.gpus} x {name}: {layout}", title_justify="left")
    for part, size in made.memory.items():
        if part == "gathered layer" and layout.zero < 3:
            continue
        table.add_row(part, size_of(size))
    table.add_row("kept free", size_of(RESERVE))
    used = made.used + RESERVE
    table.add_row("memory", f"{size_of(used)} of {size_of(gpu.memory)}", style="bold", end_section=True)
    if made.host:
        table.add_row("host memory of a node", size_of(made.host), end_section=True)
    table.add_row("micro-batches a step", f"{layout.passes} of {layout.micro_tokens:,} tokens")
    table.add_row("all-to-all a step", size_of(made.all_to_all))
    table.add_row("all-gather, reduce-scatter a step", size_of(made.gathered), end_section=True)
    for part, seconds in made.seconds.items():
        table.add_row(f"{part}, at least", _s(seconds))
    parts = made.seconds.values()
    table.add_row("step, at least", f"{_s(max(parts))} if all overlap, {_s(sum(parts))} if nothing does", style="bold")
    return table


def _held_table(own: Held, config: Shape, gpu: Gpu) -> Table:
    """What the learner's code holds, in its own dtype and with the configured optimiser (parl/plan/held.py)."""
    title = f"the learner as it is, {config.weights_dtype} weights: at its peak on each rank"
    table = Table("part", "", title=title, title_justify="left")
    for part, size in own.parts.items():
        table.add_row(part, size_of(size))
    said = "" if own.peak <= gpu.memory else ": does not fit"
    table.add_row("its peak", f"{size_of(own.peak)} of {size_of(gpu.memory)}{said}", style="bold")
    if own.host:
        table.add_row("host memory of a rank", size_of(sum(own.host.values())))
    return table


def _refusal(config: Shape, made: Plan, gpu: Gpu, host: float) -> str:
    over = made.used + RESERVE - gpu.memory
    wrong = [f"each GPU lacks {size_of(over)} of {size_of(gpu.memory)}"] if over > 0 else []
    if made.host > host:
        wrong.append(f"each node's host memory lacks {size_of(made.host - host)} of {size_of(host)}")
    found = nearest(config, made.layout, gpu, host)
    if found is None:
        return f"{made.layout} does not fit: {', '.join(wrong)}; no layout does, with these tokens at a time"
    room = gpu.memory - found.used - RESERVE
    return (
        f"{made.layout} does not fit: {', '.join(wrong)}; the nearest that fits: {found.layout} ({size_of(room)} free)"
    )


def _count(parameters: float) -> str:
    return f"{parameters / 1e9:,.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:,.2f} M"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.1f} MiB"


def _s(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:,.2f} ms"
