"""``parl episodes export | import``: stored episodes to and from formats of other tools."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from envs.base import Task
from envs.tasks_io import load_tasks
from parl.episodes.formats.check import checked
from parl.episodes.formats.common import ExportOptions, FormatError
from parl.episodes.formats.documents import read_documents
from parl.episodes.formats.registry import FORMATS, Format
from parl.episodes.listing import Filter, list_episodes
from parl.episodes.stores import readable
from parl.errors import UserError
from parl.machine.ownership import owning
from parl.shown.redaction import redact
from rollouts.episode import Episode
from rollouts.store.store import EpisodeStore, read_shard

KIND = "imported"
_SHARD = 1024  # episodes per shard


def chosen_format(name: str) -> Format:
    """The format of that name; UserError lists the valid ones."""
    if name not in FORMATS:
        raise UserError(f"--format {name}: must be one of {', '.join(FORMATS)}")
    return FORMATS[name]


def export_episodes(given: Path, out: Path, form: Format, wanted: Filter, options: ExportOptions) -> tuple[int, int]:
    """(episodes, documents) written to ``out``: a folder for formats with one file per episode, else a file."""
    if out.exists() and (not form.files or any(out.iterdir())):
        raise UserError(f"{out} already exists: remove it, or name another with --out")
    target = out if form.files else out.parent
    target.mkdir(parents=True, exist_ok=True)
    episodes = documents = 0
    lines = None if form.files else out.open("w", encoding="utf-8")
    try:
        for _, episode in whole_episodes(given, wanted):
            episodes += 1
            for document in _exported(form, episode, options):
                text = json.dumps(document)
                if lines is None:
                    name = re.sub(r"[^\w.-]", "_", f"{episode.task.key}-{episode.index}")
                    (out / _free_name(out, name)).write_text(text + "\n", encoding="utf-8")
                else:
                    lines.write(text + "\n")
                documents += 1
    finally:
        if lines is not None:
            lines.close()
    if not episodes:
        raise UserError("no episode matches: parl episodes ls STORE lists all")
    return episodes, documents


def _exported(form: Format, episode: Episode, options: ExportOptions) -> Iterator[dict[str, Any]]:
    """An episode's documents, redacted; with a redaction, without token ids, which would spell the secret."""
    documents = list(form.export(episode, options))
    clean = [redact(document) for document in documents]
    if clean != documents and options.tokens:
        clean = [redact(document) for document in form.export(episode, replace(options, tokens=False))]
    yield from clean


def whole_episodes(given: Path, wanted: Filter) -> Iterator[tuple[str, Episode]]:
    """(shard:row, episode with token arrays) of those in ``wanted``, a shard in memory at a time."""
    places: dict[Path, set[int]] = {}
    for store, outline in list_episodes(given, wanted):
        shard, row = outline.ref.rsplit(":", 1)
        places.setdefault(store.folder / f"{shard}.parquet", set()).add(int(row))
    for shard, rows in places.items():
        with readable():
            episodes, _ = read_shard(shard)
        yield from ((f"{shard.stem}:{row}", episode) for row, episode in enumerate(episodes) if row in rows)


def _free_name(folder: Path, name: str) -> str:
    number, found = 1, f"{name}.json"
    while (folder / found).exists():
        number += 1
        found = f"{name}.{number}.json"
    return found


def import_episodes(path: Path, out: Path, form: Format, tasks: Path | None = None, split: str = "test") -> int:
    """Import episodes of a file or folder as shards ``imported-N`` in ``out``; returns their number.

    ``tasks``: own tasks (``envs.tasks``), whose gold goes to episodes with the same key. UserError says what
    is wrong.
    """
    if form.load is None:
        raise UserError(f"--format {form.name} is only written, not read")
    if not path.exists():
        raise UserError(f"no file or folder {path}")
    if out.exists() and any(out.glob("*.parquet")):
        raise UserError(f"{out} holds a store already: name another with --out")
    known: dict[str, Task] = {}
    try:
        if tasks is not None:
            known = {task.key: task for task in load_tasks(str(tasks), split)}
        episodes = list(_loaded(path, form))
    except (ValueError, OSError) as fault:
        raise UserError(str(fault)) from fault
    if not episodes:
        raise UserError(f"{path} holds no episode of the format {form.name}")
    if tasks is not None and not any(episode.task.key in known for episode in episodes):
        raise UserError(f"{tasks}: none of its tasks has the key of an imported episode, e.g. {episodes[0].task.key}")
    for episode in episodes:
        episode.task = known.get(episode.task.key, episode.task)
    with owning(out, "an import", "name another folder with --out"):
        store = EpisodeStore(out)
        for number, start in enumerate(range(0, len(episodes), _SHARD)):
            store.write(number, episodes[start : start + _SHARD], policy_version=0, kind=KIND)
    return len(episodes)


def _loaded(path: Path, form: Format) -> Iterator[Episode]:
    assert form.load is not None
    for where, document in read_documents(path):
        try:
            yield from map(checked, form.load(document, path if path.is_dir() else path.parent))
        except (FormatError, OSError) as fault:
            raise ValueError(f"{where}: {fault}") from fault
        except (KeyError, TypeError, AttributeError, IndexError, ValueError, ArithmeticError, RecursionError) as fault:
            raise ValueError(f"{where}: not of the format {form.name} ({type(fault).__name__}: {fault})") from fault
