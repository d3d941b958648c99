"""Full-text index over pages: SQLite FTS5, in memory or in a file, one read-only connection per thread."""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from envs.world.site.documents import Document
from envs.world.wording import NO_MATCH, NO_RESULTS, hit_line, subject

_SCHEMA = """
CREATE TABLE pages(id TEXT PRIMARY KEY, title TEXT NOT NULL, text TEXT NOT NULL) WITHOUT ROWID;
CREATE VIRTUAL TABLE hits USING fts5(
    id UNINDEXED, title, text, keywords, authority UNINDEXED, tokenize='unicode61');
CREATE VIRTUAL TABLE terms USING fts5vocab(hits, 'row');
"""
_SEARCH = """
SELECT title, id, bm25(hits, 0.0, 10.0, 0.1, 10.0) * authority AS score
FROM hits WHERE hits MATCH ? ORDER BY score, id LIMIT ?
"""
_COMMON_SHARE, _COMMON_FLOOR = 0.05, 50  # BM25 scores every hit, so a word on 5 % of the pages is slow
_CUT = 0.5  # hits below this share of the best score only mention the name
_MAX_TERMS = 16


class PageIndex:
    """Searchable pages. Thread-safe; nothing is written after it is built."""

    def __init__(self, documents: Iterable[Document], *, path: Path | None = None) -> None:
        """Index ``documents`` in memory, or in a new file at ``path`` (FileExistsError if there is one)."""
        if path is not None and path.exists():
            raise FileExistsError(f"{path} exists; an index is written once")
        self._path, self._local = path, threading.local()
        connection = sqlite3.connect(path or ":memory:")
        connection.executescript(_SCHEMA)
        documents = list(documents)
        self._scans = frozenset(d.page_id for d in documents if d.scan)
        pages = [(d.page_id, d.title, d.text) for d in documents]
        rows = [(d.page_id, d.title, d.text, d.keywords, d.authority) for d in documents if not d.linked]
        connection.executemany("INSERT INTO pages VALUES (?, ?, ?)", pages)
        connection.executemany("INSERT INTO hits VALUES (?, ?, ?, ?, ?)", rows)
        connection.execute("INSERT INTO hits(hits) VALUES ('optimize')")
        connection.commit()
        common = max(_COMMON_FLOOR, int(_COMMON_SHARE * len(rows)))
        self._common = dict(connection.execute("SELECT term, doc FROM terms WHERE doc > ?", (common,)))
        self._image = b"" if path else connection.serialize()
        connection.close()

    def search(self, query: str, limit: int) -> str:
        """Up to ``limit`` lines ``Title: page id``, best first, or ``no results``. Any text is a valid query."""
        expression = self._expression(query)
        if not expression:
            return NO_RESULTS
        rows = self._connection().execute(_SEARCH, (expression, limit)).fetchall()
        lines = [hit_line(title, page) for title, page, score in rows if score <= _CUT * rows[0][2]]
        return "\n".join(lines) or NO_RESULTS

    def page(self, page_id: str) -> str | None:
        """The text of a page, None if there is none."""
        try:
            row = self._connection().execute("SELECT text FROM pages WHERE id = ?", (page_id,)).fetchone()
        except UnicodeEncodeError:  # lone surrogates, which JSON allows and SQLite refuses
            return None
        return row[0] if row else None

    def found_in(self, page_id: str, pattern: str) -> str | None:
        """The lines with ``pattern``, or one of several (``a|b``), or ``no match``; None if there is no such page."""
        text = self.page(page_id)
        if text is None:
            return None
        patterns = [part for part in pattern.casefold().split("|") if part.strip()]
        lines = [line for line in text.splitlines() if any(part in line.casefold() for part in patterns)]
        return NO_MATCH if page_id in self._scans else "\n".join(lines) or NO_MATCH

    def _expression(self, query: str) -> str:
        """An FTS5 query of quoted words joined by OR, without very common words; of ``mass, 3. Karona`` the
        name.
        """
        words = list(dict.fromkeys(re.findall(r"\w+", _fold(subject(query)))))[:_MAX_TERMS]
        rare = [word for word in words if word not in self._common]
        if not rare and words:
            rare = [min(words, key=lambda word: self._common[word])]
        return " OR ".join(f'"{word}"' for word in rare)

    def _connection(self) -> sqlite3.Connection:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            if self._path is None:
                connection = sqlite3.connect(":memory:")
                connection.deserialize(self._image)
            else:
                connection = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
            connection.execute("PRAGMA query_only = 1")
            self._local.connection = connection
        return connection


def _fold(text: str) -> str:
    """Lower case without diacritics, as the index's tokenizer stores words."""
    marks = unicodedata.normalize("NFKD", text.lower())
    return "".join(c for c in marks if not unicodedata.combining(c))
