"""The ``parl`` command. Help, ``--dry-run`` and mistakes answer before anything heavy is imported."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from parl.errors import UserError

app = typer.Typer(
    name="parl",
    help="Train an orchestrator to split work over a swarm of frozen sub-agents, where it pays.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

ConfigArg = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/quickstart.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="dotted overrides, e.g. trainer.steps=20 seed=2")
]
FromScratch = Annotated[bool, typer.Option("--from-scratch", help="Ignore caches and shipped weights: do it all.")]


@contextmanager
def _reported(hint: str = "") -> Iterator[None]:
    """Turn what goes wrong into an exit code: 2 a mistake with a fix, 130 interrupted, 1 anything else."""
    try:
        yield
    except UserError as error:
        typer.echo(f"error: {getattr(error, 'cause', None) or error}", err=True)  # Ray wraps what its actors raise
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted{hint}", err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception:
        traceback.print_exc()
        raise typer.Exit(1) from None


@app.command()
def train(
    config: ConfigArg,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")] = False,
    from_scratch: FromScratch = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and stop.")] = False,
) -> None:
    """Cold start, reinforcement learning, evaluation and report of one run."""
    with _reported(f"; continue with: parl train {config} {' '.join(overrides or [])} --resume".replace("  ", " ")):
        from parl.loading import load_config, to_yaml

        if resume and from_scratch:
            raise UserError("--resume continues the old run and --from-scratch discards it: give one of them")
        resolved = load_config(config, overrides)
        if dry_run:
            typer.echo(to_yaml(resolved), nl=False)
            typer.echo(f"# run folder: {resolved.run_dir}")
            return
        from parl.trainer import run_training

        run_dir = run_training(resolved, resume=resume, from_scratch=from_scratch)
        typer.echo(f"done: {run_dir}")


@app.command()
def sft(
    config: ConfigArg,
    overrides: Overrides = None,
    from_scratch: FromScratch = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Also write them here as a starter, e.g. configs/starters.")
    ] = None,
) -> None:
    """Only the cold start: imitation of scripted demonstrations."""
    with _reported():
        from parl.loading import load_config

        resolved = load_config(config, overrides)
        from parl.sft import run_sft
        from parl.tasks import check_tasks

        check_tasks(resolved)
        typer.echo(f"done: {run_sft(resolved, from_scratch=from_scratch, out=out)}")


@app.command("eval")
def evaluate(
    config: ConfigArg,
    overrides: Overrides = None,
    model: Annotated[Path | None, typer.Option("--model", help="Weights to evaluate instead of the run's own.")] = None,
    single_agent: Annotated[bool, typer.Option("--single-agent", help="Without the tools that spawn.")] = False,
) -> None:
    """Evaluate a policy on held-out tasks."""
    with _reported():
        from parl.loading import load_config

        resolved = load_config(config, overrides)
        from parl.evaluate import run_eval

        _print_groups(run_eval(resolved, model=model, single_agent=single_agent))


def _print_groups(result: dict) -> None:
    """The evaluation as a table: a row for each group of tasks."""
    from rich.console import Console
    from rich.table import Table

    groups = {name: numbers for name, numbers in result.items() if isinstance(numbers, dict)}
    columns = list(dict.fromkeys(column for numbers in groups.values() for column in numbers))
    table = Table("tasks", *columns)
    for name, numbers in groups.items():
        cells = [numbers.get(column) for column in columns]
        table.add_row(name, *(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells))
    Console().print(table)


@app.command()
def report(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN|STORE", help="a run's folder or its name below runs/; a store's folder; a shard"),
    ],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: report.html in that folder.")] = None,
    episode: Annotated[
        list[str] | None, typer.Option("--episode", "-e", help="Show this one: TASK or TASK#INDEX; may be repeated.")
    ] = None,
) -> None:
    """Write one self-contained HTML page about a run or a store: verdict, curves, swarm viewer."""
    with _reported():
        from parl.report import write_report

        run_dir = run if run.exists() or not (Path("runs") / run).is_dir() else Path("runs") / run
        folder = run_dir.parent if run_dir.is_file() else run_dir
        typer.echo(f"wrote {write_report(run_dir, out or folder / 'report.html', episode or [])}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder or name, or a policy's folder")],
    format: Annotated[str, typer.Option("--format", help="hf (deepseek_v3) or kimi_k25 (its language model).")] = "hf",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: a folder in RUN named after it.")] = None,
    int4: Annotated[bool, typer.Option("--int4", help="Routed experts as INT4, packed as K2.5's are.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="Of the other matrices: float32 or bfloat16.")] = "float32",
) -> None:
    """Write a policy as a Hugging Face folder, which transformers and inference servers load."""
    with _reported():
        from parl.export import export as write

        typer.echo(f"wrote {write(run, out, format=format, int4=int4, dtype=dtype)}")


@app.command()
def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="a shape in configs/models, a YAML file, or a folder")],
    gpus: Annotated[int, typer.Option("--gpus", help="GPUs in all.")],
    gpu: Annotated[str, typer.Option("--gpu", help="Their kind: h200 or h100.")] = "h200",
    zero: Annotated[int, typer.Option("--zero", help="ZeRO stage.")] = 2,
    ep: Annotated[int, typer.Option("--ep", help="GPUs that share a layer's experts; 0: as many as possible.")] = 0,
    offload: Annotated[str, typer.Option("--offload", help="none or optimizer: its states in host memory.")] = "none",
    micro_tokens: Annotated[int, typer.Option("--micro-tokens", help="Tokens of a GPU in one pass.")] = 4096,
    step_tokens: Annotated[int, typer.Option("--step-tokens", help="Tokens of all in one step.")] = 4_194_304,
    context: Annotated[int, typer.Option("--context", help="Length of the rows in tokens.")] = 32_768,
    host_gb: Annotated[float, typer.Option("--host-gb", help="Memory of a node of 8 GPUs.")] = 2000.0,
) -> None:
    """What training a model takes: memory a GPU, bytes moved, a floor of the step's time; or why it cannot fit."""
    with _reported():
        from parl.plan_table import print_plan

        sizes = {"micro_tokens": micro_tokens, "step_tokens": step_tokens, "context": context}
        print_plan(model, gpu, host_gb=host_gb, gpus=gpus, zero=zero, ep=ep, offload=offload, **sizes)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parl {version('parl')}")
        raise typer.Exit


@app.callback()
def _root(
    show: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the ``parl`` script."""
    sys.exit(app())
