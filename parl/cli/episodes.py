"""``parl episodes ls | show | grep | export | import``: the commands' arguments."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Annotated

import typer

from parl.cli.errors import reported, written_to
from parl.errors import UserError
from parl.shown.terminal import echo, line

app = typer.Typer(help="List, show and search stored episodes; write and read other formats.", no_args_is_help=True)

StoreArg = Annotated[Path, typer.Argument(metavar="STORE", help="a run's folder or name, a store's folder, or a shard")]
Kind = Annotated[str | None, typer.Option("--kind", help="Only shards of this kind: train, trained, single_agent, ...")]
Step = Annotated[int | None, typer.Option("--step", help="Only this training step.")]
Family = Annotated[str | None, typer.Option("--family", help="Only tasks of this family.")]
Status = Annotated[str | None, typer.Option("--status", help="answered, over_budget, malformed or failed.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Maximum number of episodes.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object per line.")]


@app.command("ls")
def ls(
    store: StoreArg,
    kind: Kind = None,
    step: Step = None,
    family: Family = None,
    status: Status = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """List episodes: how they ended, their rewards, steps and sub-agents."""
    with reported():
        from parl.episodes.listing import Filter, list_episodes, listing_row
        from parl.episodes.view import print_listing

        chosen = Filter(kind=kind, step=step, family=family, status=status)
        rows = (listing_row(*found) for found in itertools.islice(list_episodes(store, chosen), limit))
        if as_json:
            for row in rows:
                echo(json.dumps(row))
        elif not print_listing(rows):
            raise UserError("no episode matches: parl episodes ls STORE lists all")


@app.command("show")
def show(
    store: StoreArg,
    episode: Annotated[str, typer.Argument(metavar="EPISODE", help="SHARD:ROW as ls prints it, or KEY#ATTEMPT")],
    full: Annotated[bool, typer.Option("--full", help="Do not cut long texts.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="The decoded token streams, control tokens included.")] = False,
    tokenizer: Annotated[Path | None, typer.Option("--tokenizer", help="For --raw; default: the run's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one episode as a tree of its agents, with their messages, calls and results."""
    with reported():
        from parl.episodes.listing import episode_row, find_episode, raw_streams
        from parl.episodes.view import print_episode

        where, found = find_episode(store, episode)
        if as_json:
            echo(json.dumps(episode_row(where, found)))
        elif raw:
            for agent, text in raw_streams(found, tokenizer, where.run):
                echo(f"--- {line(agent)}\n{text}")
        else:
            print_episode(where, found, full=full)


@app.command("grep")
def grep(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help="a regular expression")],
    store: StoreArg,
    fixed: Annotated[bool, typer.Option("--fixed", "-F", help="PATTERN is plain text.")] = False,
    ignore_case: Annotated[bool, typer.Option("--ignore-case", "-i")] = False,
    kind: Kind = None,
    step: Step = None,
    family: Family = None,
    status: Status = None,
    limit: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Search prompts, messages, calls and results; exits with 1 where nothing is found, as grep does."""
    with reported():
        from parl.episodes.listing import Filter, search
        from parl.episodes.view import print_hits

        try:
            compiled = re.compile(re.escape(pattern) if fixed else pattern, re.IGNORECASE if ignore_case else 0)
        except re.error as error:
            raise UserError(f"{pattern!r} is no regular expression ({error}); -F searches for plain text") from None
        if compiled.search(""):
            raise UserError(
                f"{pattern!r} is found in every text, an empty one too: parl episodes ls lists all episodes"
            )
        chosen = Filter(kind=kind, step=step, family=family, status=status)
        hits = itertools.islice(search(store, compiled, chosen), limit)
        if as_json:
            count = 0
            for count, hit in enumerate(hits, 1):  # noqa: B007
                echo(json.dumps(hit.row()))
        else:
            count = print_hits(hits)
        if not count:
            raise typer.Exit(1)


Form = Annotated[
    str,
    typer.Option("--format", help="atif, verifiers, openai, widesearch, swe-bench ... (docs/formats.md)"),
]


@app.command("export")
def export(
    store: StoreArg,
    out: Annotated[Path, typer.Option("--out", "-o", help="a file; a folder for formats with one file per episode")],
    form: Form,
    kind: Kind = None,
    step: Step = None,
    family: Family = None,
    status: Status = None,
    keep_gold: Annotated[bool, typer.Option("--keep-gold", help="Keep gold answers and plans.")] = False,
    no_tokens: Annotated[bool, typer.Option("--no-tokens", help="Without token ids and log-probs.")] = False,
) -> None:
    """Write episodes in another format, without gold answers and secrets (docs/formats.md)."""
    with reported():
        from parl.episodes.exchange import chosen_format, export_episodes
        from parl.episodes.formats.common import ExportOptions
        from parl.episodes.listing import Filter

        chosen = Filter(kind=kind, step=step, family=family, status=status)
        options = ExportOptions(keep_gold=keep_gold, tokens=not no_tokens)
        with written_to(out):
            episodes, documents = export_episodes(store, out, chosen_format(form), chosen, options)
        echo(f"{episodes} episodes, {documents} documents in {out}")


@app.command("import")
def import_(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="a .json or .jsonl file, or a folder of them")],
    out: Annotated[Path, typer.Option("--out", "-o", help="the new store's folder")],
    form: Form,
    tasks: Annotated[
        Path | None, typer.Option("--tasks", help="own tasks, whose gold is added to episodes by key")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="split of --tasks")] = "test",
) -> None:
    """Read episodes of another format into a store, for rescore, compare, report, ls, show and grep."""
    with reported():
        from parl.episodes.exchange import chosen_format, import_episodes

        with written_to(out):
            count = import_episodes(path, out, chosen_format(form), tasks, split)
        echo(f"{count} episodes in {out}")
