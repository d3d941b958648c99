"""Builds a corpus out of a folder of documents, and of questions beside them.

Files are read in the order of their paths, so the same folder gives the same corpus. Hidden files and what links lead
to outside are left out. Long documents become several pages, cut at headings or blank lines where there are some.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from envs.base import Task
from envs.data.problems import DataError
from envs.research.corpus import LICENCES, SPLITS, Page, write_corpus
from envs.research.folder.formats import Document, Unreadable, documents, known
from envs.tasks_io import read_tasks

QUESTIONS = "questions.jsonl"  # looked for in the folder
_LONGEST = 12_000  # characters of a page
_BIGGEST = 64 * 2**20  # bytes of a file
_LICENCE = re.compile(r"(LICEN[CS]E|COPYING|NOTICE)", re.IGNORECASE)


@dataclass(slots=True)
class Built:
    """What was made. ``left_out``: (file, reason). ``others``: files of other kinds, by suffix.

    ``notes``: on the questions.
    """

    pages: int = 0
    files: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def build_folder(
    source: Path, folder: Path, questions: Path | None, check: Callable[[Task], str | None] | None = None
) -> Built:
    """Write the corpus of the documents in ``source`` to the empty ``folder``.

    ``questions``: a file of tasks, by default ``questions.jsonl`` in ``source`` if there is one; ``check`` says what is
    wrong with a task. ValueError if nothing can be read, or with all mistakes of the questions.
    """
    built = Built()
    asked = questions or (source / QUESTIONS if (source / QUESTIONS).is_file() else None)
    tasks = _questions(asked, built, check) if asked else {}
    drafts = list(_read(source, asked, built))
    if not drafts:
        told = "".join(f"\n  - {name}: {reason}" for name, reason in built.left_out[:20])
        what = "no Markdown, HTML, PDF, text or CSV file in it can be read"
        raise ValueError(f"{source}: {what}{told}")
    pages = [Page(id=f"p{n}", title=title, text=text) for n, (title, text) in enumerate(drafts, 1000)]
    sources = [{"folder": source.resolve().name, "files": built.files}]
    write_corpus(folder, source.resolve().name, pages, tasks, sources)
    _keep_licences(source, folder)
    built.pages, built.tasks = len(pages), {split: len(found) for split, found in tasks.items()}
    return built


def _read(source: Path, questions: Path | None, built: Built) -> Iterator[Document]:
    taken: dict[str, int] = {}
    for path in _files(source):
        if questions is not None and path.resolve() == questions.resolve():
            continue
        name = path.relative_to(source).as_posix()
        if not known(path.suffix.lower()):
            built.others[path.suffix.lower() or "without a suffix"] += 1
            continue
        try:
            if path.stat().st_size > _BIGGEST:
                raise Unreadable(f"has {path.stat().st_size >> 20} MiB, more than {_BIGGEST >> 20}: divide it")
            found = list(documents(path))
        except Unreadable as fault:
            built.left_out.append((name, str(fault)))
            continue
        except OSError as fault:
            built.left_out.append((name, f"cannot be read ({fault.strerror or fault})"))
            continue
        built.files += 1
        for title, text in found:
            taken[title] = taken.get(title, 0) + 1
            unique = title if taken[title] == 1 else f"{title} ({name}, {taken[title]})"
            yield from divided(unique, text)


def _files(source: Path) -> Iterator[Path]:
    """Regular files below ``source`` in the order of their paths; hidden ones and links to outside are left out."""
    inside = source.resolve()
    for place, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(place, name)
            if not name.startswith(".") and path.is_file() and path.resolve().is_relative_to(inside):
                yield path


def divided(title: str, text: str) -> list[Document]:
    """``text`` as pages of at most about 12,000 characters: ``Guide (2 of 3)``."""
    if len(text) <= _LONGEST:
        return [(title, text)]
    parts: list[str] = []
    rest = text
    while len(rest) > _LONGEST:
        at = _cut(rest)
        parts.append(rest[:at].strip())
        rest = rest[at:].lstrip("\n")
    parts = [part for part in [*parts, rest.strip()] if part]
    return [(f"{title} ({number} of {len(parts)})", part) for number, part in enumerate(parts, 1)]


def _cut(text: str) -> int:
    """Where a page ends: before the last heading, blank line, line or word of its second half."""
    for mark in ("\n# ", "\n## ", "\n### ", "\n[page ", "\n\n", "\n", " "):
        at = text.rfind(mark, _LONGEST // 2, _LONGEST)
        if at > 0:
            return at + 1
    return _LONGEST


def _questions(path: Path, built: Built, check: Callable[[Task], str | None] | None) -> dict[str, list[Task]]:
    """Tasks by split. Rows without a split are in all of them, as in ``envs.tasks``."""
    source = read_tasks(str(path), "", check)
    built.notes += [f"{path.name}: {note}" for note in source.notes]
    if unknown := sorted({task.split for task in source.tasks} - {"", *SPLITS}):
        raise DataError(f"{path}: splits {unknown}: name train, val or test, or leave the column out")
    if source.tasks and not any(task.split for task in source.tasks):
        built.notes.append(
            f"{path.name}: no row has a split, so training and evaluation share all {len(source.tasks)}: mark some"
            ' with "split": "val" and "test" to measure what was learnt'
        )
    return {
        split: [replace(task, split=split) for task in source.tasks if task.split in ("", split)] for split in SPLITS
    }


def _keep_licences(source: Path, folder: Path) -> None:
    (folder / LICENCES).mkdir()
    for path in sorted(source.iterdir()):
        if path.is_file() and _LICENCE.match(path.name):
            shutil.copyfile(path, folder / LICENCES / path.name)
