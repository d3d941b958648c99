"""What ``parl plan`` prints: the model, the layout's memory and traffic, a floor of the step's time. No torch."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from model.config import ModelConfig
from model.hf_config import read_shape
from parl.errors import UserError
from parl.loading import load_config
from parl.plan import GB, GPUS, RESERVE, Gpu, Layout, Plan, cache_bytes, check, count, degrees, fits, nearest, plan

MODELS = Path("configs") / "models"


def print_plan(
    model: str, gpu: str, *, host_gb: float, gpus: int, zero: int, ep: int, offload: str, **sizes: int
) -> None:
    """Print the plan of a layout; ``ep`` 0 takes the largest degree. UserError where it cannot be, or cannot fit."""
    config = shape_of(model)
    if gpu not in GPUS:
        raise UserError(f"--gpu {gpu}: must be one of {', '.join(GPUS)}")
    if offload not in ("none", "optimizer"):
        raise UserError(f"--offload {offload}: must be one of none, optimizer")
    ep = ep or max(degrees(config, max(gpus, 1)))
    layout = Layout(gpus=gpus, zero=zero, ep=ep, offload=offload == "optimizer", **sizes)
    check(config, layout)
    made = plan(config, layout, GPUS[gpu])
    console = Console()
    console.print(_model_table(model, config))
    console.print(_layout_table(made, gpu))
    console.print(f"[dim]{gpu}: {GPUS[gpu].source}. Assumptions: parl/plan.py.[/dim]")
    if not fits(made, GPUS[gpu], host_gb * GB):
        raise UserError(_refusal(config, made, gpu, host_gb * GB))


def shape_of(model: str) -> ModelConfig:
    """The shape that MODEL names: in configs/models, a run's YAML file, or a folder with config.json."""
    path = Path(model)
    if path.is_dir():
        try:
            return read_shape(path)
        except (ValueError, FileNotFoundError) as error:
            raise UserError(str(error)) from None
    named = MODELS / f"{model}.yaml"
    if not path.is_file() and not named.is_file():
        known = ", ".join(sorted(file.stem for file in MODELS.glob("*.yaml")))
        raise UserError(f"no model {model}: neither a file, nor a folder with config.json, nor one of {known}")
    return load_config(path if path.is_file() else named).model.shape


def _model_table(model: str, config: ModelConfig) -> Table:
    n = count(config)
    cache = cache_bytes(config)
    table = Table(title=f"{Path(model).stem}", show_header=False, title_justify="left")
    table.add_row("parameters", f"{_count(n.total)} ({n.total:,})")
    table.add_row("of them in routed experts", _count(n.routed))
    if config.vision:
        table.add_row("not planned for", "tower and projector, which a token of text does not pass")
    table.add_row("active a token", f"{_count(n.active)}, {_count(n.active + n.embedding)} with the input embedding")
    longest = config.max_position_embeddings
    table.add_row("KV cache a token", f"{cache:,} B in bfloat16; {_gib(cache * longest)} at {longest:,} tokens")
    return table


def _layout_table(made: Plan, name: str) -> Table:
    gpu, layout = GPUS[name], made.layout
    table = Table("on each GPU", "", title=f"{layout.gpus} x {name}: {layout}", title_justify="left")
    for part, size in made.memory.items():
        if part == "gathered layer" and layout.zero < 3:
            continue
        table.add_row(part, _gb(size))
    table.add_row("kept free", _gb(RESERVE))
    used = made.used + RESERVE
    table.add_row("memory", f"{_gb(used)} of {_gb(gpu.memory)}", style="bold", end_section=True)
    if made.host:
        table.add_row("host memory of a node", _gb(made.host), end_section=True)
    table.add_row("micro-batches a step", f"{layout.passes} of {layout.micro_tokens:,} tokens")
    table.add_row("all-to-all a step", _gb(made.all_to_all))
    table.add_row("all-gather, reduce-scatter a step", _gb(made.gathered), end_section=True)
    for part, seconds in made.seconds.items():
        table.add_row(f"{part}, at least", _s(seconds))
    parts = made.seconds.values()
    table.add_row("step, at least", f"{_s(max(parts))} if all overlap, {_s(sum(parts))} if nothing does", style="bold")
    return table


def _refusal(config: ModelConfig, made: Plan, name: str, host: float) -> str:
    gpu: Gpu = GPUS[name]
    over = made.used + RESERVE - gpu.memory
    wrong = [f"each GPU lacks {_gb(over)} of {_gb(gpu.memory)}"] if over > 0 else []
    if made.host > host:
        wrong.append(f"each node's host memory lacks {_gb(made.host - host)} of {_gb(host)}")
    found = nearest(config, made.layout, gpu, host)
    if found is None:
        return f"{made.layout} does not fit: {', '.join(wrong)}; no layout does, with these tokens at a time"
    room = gpu.memory - found.used - RESERVE
    return f"{made.layout} does not fit: {', '.join(wrong)}; the nearest that fits: {found.layout} ({_gb(room)} free)"


def _count(parameters: float) -> str:
    return f"{parameters / 1e9:,.2f} B" if parameters >= 1e9 else f"{parameters / 1e6:,.2f} M"


def _gb(size: float) -> str:
    return f"{size / GB:,.1f} GB" if size >= GB / 10 else f"{size / 1e6:,.1f} MB"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:,.1f} MiB"


def _s(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 0.1 else f"{seconds * 1e3:,.2f} ms"
