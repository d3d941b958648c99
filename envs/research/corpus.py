"""A corpus folder: pages in a full-text index, questions, and where the text comes from.

    corpus.db      SQLite: the table ``pages`` and its FTS5 index, title and text
    corpus.json    name, number of pages, hash of the pages, sources
    tasks/         questions of a split, one file each, as rows of ``Task.to_row``
    LICENSES/      the licences of the texts

Written once by a builder (``parl env build``), then only read.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.base import Task

SPLITS = ("train", "val", "test")
DATABASE, MANIFEST, TASKS, LICENCES = "corpus.db", "corpus.json", "tasks", "LICENSES"
_FORMAT = 1
_SCHEMA = """
CREATE TABLE pages(row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL);
CREATE VIRTUAL TABLE hits USING fts5(
    title, text, content='pages', content_rowid='row', tokenize='unicode61 remove_diacritics 2');
"""
_SEARCH = """
SELECT pages.id, pages.title, snippet(hits, 1, '', '', ' ... ', ?)
FROM hits JOIN pages ON pages.row = hits.rowid
WHERE hits MATCH ? ORDER BY bm25(hits, 8.0, 1.0), pages.row LIMIT ?
"""
_SILENT = frozenset(  # words that find nothing, and occur on nearly every page
    "a an and are at by for from in is it of on or s the to was were what which who with".split()  # noqa: SIM905
)
_MAX_WORDS = 24
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page: an id that says nothing about it, a title, and text by lines."""

    id: str
    title: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A page that a search found. ``snippet``: its best passage, empty unless asked for."""

    id: str
    title: str
    snippet: str = ""


class CorpusError(ValueError):
    """The folder is no corpus, or is damaged; the message names the file and the fix."""


def write_corpus(
    folder: Path,
    name: str,
    pages: Iterable[Page],
    tasks: Mapping[str, Sequence[Task]],
    sources: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Write pages, index, questions by split and ``corpus.json`` to the empty ``folder``; returns the manifest."""
    digest, count = hashlib.sha256(), 0
    connection = sqlite3.connect(folder / DATABASE)
    try:
        connection.executescript(_SCHEMA)
        for count, page in enumerate(pages, 1):  # noqa: B007 - the number of pages
            row = (page.id, page.title, page.text)
            digest.update(json.dumps(row, ensure_ascii=True).encode())
            connection.execute("INSERT INTO pages(id, title, text) VALUES (?, ?, ?)", row)
        connection.execute("INSERT INTO hits(hits) VALUES ('rebuild')")
        connection.execute("INSERT INTO hits(hits) VALUES ('optimize')")
        connection.commit()
    finally:
        connection.close()
    (folder / TASKS).mkdir()
    for split, asked in tasks.items():
        (folder / TASKS / f"{split}.jsonl").write_bytes(task_lines(asked))
    manifest = {
        "format": _FORMAT,
        "name": name,
        "pages": count,
        "digest": digest.hexdigest(),
        "tasks": {split: len(asked) for split, asked in tasks.items()},
        "sources": [dict(source) for source in sources],
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def task_lines(tasks: Sequence[Task]) -> bytes:
    """The file of a split's questions."""
    return "".join(json.dumps(task.to_row(), ensure_ascii=False, sort_keys=True) + "\n" for task in tasks).encode()


class Corpus:
    """A corpus folder, read-only and thread-safe. CorpusError if it is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        except OSError:
            raise CorpusError(f"{folder} holds no {MANIFEST}: build a corpus there with parl env build") from None
        except ValueError as error:
            raise CorpusError(f"{folder / MANIFEST}: {error}; build the corpus again") from None
        if self.manifest.get("format") != _FORMAT or not (folder / DATABASE).exists():
            raise CorpusError(f"{folder}: {DATABASE} is missing or of another version; build the corpus again")
        self._local = threading.local()

    def __len__(self) -> int:
        return self.manifest["pages"]

    @property
    def digest(self) -> str:
        """A hash of the pages."""
        return self.manifest["digest"]

    def search(self, query: str, limit: int, snippet_words: int = 0) -> list[Hit]:
        """The ``limit`` best pages; any text is a valid query. A word in the title weighs eight in the text."""
        words = list(dict.fromkeys(_WORD.findall(folded(query))))
        telling = [word for word in words if word not in _SILENT][:_MAX_WORDS] or words[:_MAX_WORDS]
        if not telling:
            return []
        expression = " OR ".join(f'"{word}"' for word in telling)
        rows = self._rows(_SEARCH, (max(snippet_words, 1), expression, limit))
        return [Hit(id=page, title=title, snippet=text if snippet_words else "") for page, title, text in rows]

    def page(self, page_id: str) -> Page | None:
        """A page by its id; None if there is none."""
        try:
            rows = self._rows("SELECT id, title, text FROM pages WHERE id = ?", (page_id,))
        except UnicodeEncodeError:  # lone surrogates, which JSON allows and SQLite refuses
            return None
        return Page(id=rows[0][0], title=rows[0][1], text=rows[0][2]) if rows else None

    def titled(self, title: str) -> Page | None:
        """The page of exactly that title: for builders and tests; agents search."""
        rows = self._rows("SELECT id, title, text FROM pages WHERE title = ? ORDER BY row", (title,))
        return Page(id=rows[0][0], title=rows[0][1], text=rows[0][2]) if rows else None

    def tasks(self, split: str) -> list[Task]:
        """The questions of ``split``; ValueError for an unknown split, CorpusError for a damaged file."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        path = self.folder / TASKS / f"{split}.jsonl"
        if not path.exists():
            return []
        try:
            return [Task.from_row(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{path}: {error}; build the corpus again") from None

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            path = (self.folder / DATABASE).absolute()
            connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
            self._local.connection = connection
        return connection.execute(query, values).fetchall()


def folded(text: str) -> str:
    """Lower case without diacritics, as the index stores words."""
    marks = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in marks if not unicodedata.combining(c))


def plain_words(text: str) -> str:
    """The words of ``text``, folded, with one blank before each and at the end: `` median age total ``."""
    return f" {' '.join(_WORD.findall(folded(text)))} "
