"""A corpus folder: pages in a full-text index, questions, and where the text comes from.

    corpus.db      SQLite: pages in passages, and their FTS5 index over title and text
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
CREATE TABLE pages(row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, key TEXT NOT NULL);
CREATE INDEX keys ON pages(key);
CREATE TABLE passages(row INTEGER PRIMARY KEY, page INTEGER NOT NULL, title TEXT NOT NULL, text TEXT NOT NULL);
CREATE INDEX passages_of ON passages(page);
CREATE VIRTUAL TABLE hits USING fts5(
    title, text, content='passages', content_rowid='row', tokenize='unicode61 remove_diacritics 2');
"""
_SEARCH = """
SELECT pages.id, pages.title, snippet(hits, 1, '', '', ' ... ', ?)
FROM hits JOIN passages ON passages.row = hits.rowid JOIN pages ON pages.row = passages.page
WHERE hits MATCH ? ORDER BY bm25(hits, 8.0, 1.0), hits.rowid LIMIT ?
"""
_EXACT = "SELECT id, title FROM pages WHERE key = ? ORDER BY row LIMIT ?"
_TITLED = "SELECT row, id, title FROM pages WHERE {} = ? ORDER BY row LIMIT 1"
_PASSAGE = 800  # characters of a passage; a longer line is one by itself
_PASSAGES = 8  # looked at for each page wanted: several may be of one page
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
        for count, page in enumerate(pages, 1):
            digest.update(json.dumps((page.id, page.title, page.text), ensure_ascii=True).encode())
            connection.execute(
                "INSERT INTO pages VALUES (?, ?, ?, ?)", (count, page.id, page.title, plain_words(page.title))
            )
            rows = [(count, page.title, text) for text in passages(page.text)]
            connection.executemany("INSERT INTO passages(page, title, text) VALUES (?, ?, ?)", rows)
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
        """The ``limit`` best pages, by their best passage; any text is a valid query.

        A page whose title has just the query's words comes first. A word in the title weighs eight in the text.
        """
        words = list(dict.fromkeys(_WORD.findall(folded(query))))
        telling = [word for word in words if word not in _SILENT][:_MAX_WORDS] or words[:_MAX_WORDS]
        if not telling:
            return []
        expression = " OR ".join(f'"{word}"' for word in telling)
        exact = self._rows(_EXACT, (plain_words(query), limit))
        found = {page: Hit(id=page, title=title) for page, title in exact}
        for page, title, text in self._rows(_SEARCH, (max(snippet_words, 1), expression, _PASSAGES * limit)):
            found.setdefault(page, Hit(id=page, title=title, snippet=text if snippet_words else ""))
        return list(found.values())[:limit]

    def page(self, page_id: str) -> Page | None:
        """A page by its id; None if there is none."""
        return self._page("id", page_id)

    def titled(self, title: str) -> Page | None:
        """The page of exactly that title: for builders and tests; agents search."""
        return self._page("title", title)

    def _page(self, column: str, value: str) -> Page | None:
        try:
            rows = self._rows(_TITLED.format(column), (value,))
        except UnicodeEncodeError:  # lone surrogates, which JSON allows and SQLite refuses
            return None
        if not rows:
            return None
        texts = self._rows("SELECT text FROM passages WHERE page = ? ORDER BY row", (rows[0][0],))
        return Page(id=rows[0][1], title=rows[0][2], text="\n".join(text for (text,) in texts))

    def check(self) -> None:
        """CorpusError unless all pages are there."""
        ((found,),) = self._rows("SELECT count(*) FROM pages JOIN passages ON passages.page = pages.row", ())
        ((pages,),) = self._rows("SELECT count(*) FROM pages", ())
        if pages != len(self) or found < pages:
            raise CorpusError(f"{self.folder / DATABASE} has {pages} pages, not {len(self)}; build the corpus again")

    def tasks(self, split: str) -> list[Task]:
        """The questions of ``split``; ValueError for an unknown split, CorpusError for a damaged file."""
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
        path = self.folder / TASKS / f"{split}.jsonl"
        if not path.exists():
            return []
        try:
            lines = path.read_text(encoding="utf-8").split("\n")  # splitlines() also ends lines within JSON texts
            return [Task.from_row(json.loads(line)) for line in lines if line.strip()]
        except (ValueError, KeyError, TypeError) as error:
            raise CorpusError(f"{path}: {error}; build the corpus again") from None

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            path = (self.folder / DATABASE).absolute()
            connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
            self._local.connection = connection
        try:
            return connection.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise CorpusError(f"{self.folder / DATABASE}: {error}; build the corpus again") from None


def passages(text: str) -> list[str]:
    """``text`` in parts of whole lines, which the index ranks by themselves; joined by line ends they are the text."""
    found: list[list[str]] = [[]]
    size = 0
    for line in text.split("\n"):
        if found[-1] and size + len(line) > _PASSAGE:
            found.append([])
            size = 0
        found[-1].append(line)
        size += len(line) + 1
    return ["\n".join(lines) for lines in found]


def folded(text: str) -> str:
    """Lower case without diacritics, as the index stores words."""
    marks = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in marks if not unicodedata.combining(c))


def plain_words(text: str) -> str:
    """The words of ``text``, folded, with one blank before each and at the end: `` median age total ``."""
    return f" {' '.join(_WORD.findall(folded(text)))} "
