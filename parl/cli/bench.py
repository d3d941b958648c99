"""``parl bench``: prepare, run and score published benchmarks."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from parl.cli.errors import reported
from parl.shown.terminal import echo

app = typer.Typer(help="Published benchmarks: prepare a download, run a policy, score replies.", no_args_is_help=True)


class Mode(StrEnum):
    """Which rules score."""

    COMPAT = "compat"
    SANE = "sane"


Name = Annotated[str, typer.Argument(metavar="NAME", help="a benchmark; parl bench list names all")]


@app.command("score")
def score(
    name: Name,
    path: Annotated[Path, typer.Argument(metavar="CASES.jsonl", help="rows with a task's gold and a reply")],
    mode: Annotated[
        Mode, typer.Option("--mode", help="The official numbers, defects included; or fair ones.")
    ] = Mode.COMPAT,
) -> None:
    """Score replies that are in a file; prints one JSON object per row."""
    with reported():
        from parl.evaluate.bench.cases import score_cases

        for row in score_cases(name, path, mode.value):
            echo(json.dumps(row, allow_nan=False))
