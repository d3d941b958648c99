"""``parl sweep``: grids of runs with seeds, compared with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parl.cli.errors import reported, written_to
from parl.shown.terminal import echo

app = typer.Typer()


@app.command("sweep")
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a sweep's YAML file, or a preset such as sweeps/tiny")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and an estimate, and stop.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Cells at once.")] = 1,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ARM", help="Only cells of this arm; may be repeated.")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Only write results and figures of what is done.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Run cells anew whose configuration changed.")] = False,
    keep: Annotated[
        Path | None,
        typer.Option(
            "--keep", metavar="FOLDER", help="Copy what is finished there, and take from it what is not here."
        ),
    ] = None,
) -> None:
    """Run a grid of variants and seeds, and compare them: tables, figures, one page. Resumable."""
    with reported("" if dry_run or report else "; the same command continues"):
        from parl.sweep.run import run_sweep

        with written_to(keep or Path(".")):
            failed = run_sweep(file, dry_run=dry_run, jobs=jobs, only=only or (), report=report, again=again, keep=keep)
        if failed:
            echo(f"failed: {', '.join(failed)}; the same command tries them again", err=True)
            raise typer.Exit(1)


@app.command("sweep-cell", hidden=True)
def sweep_cell(order: Annotated[Path, typer.Argument(metavar="ORDER", help="SWEEP/cells/ID.json")]) -> None:
    """Run one cell of a sweep, which the sweep has ordered."""
    with reported():
        from parl.sweep.cell import run_cell

        run_cell(order)
