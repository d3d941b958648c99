"""Files as documents, a title and text by lines: Markdown, plain text, HTML, PDF, and tables of rows.

Whatever cannot be read raises :class:`Unreadable` with the reason and the fix. The readers of HTML and PDF are
libraries of the extra ``documents``, imported when the first such file is met.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from envs.data.grid import read_csv
from envs.data.problems import DataError, Problems
from envs.data.text import read_text

Document = tuple[str, str]  # title, text
_TEXTS = (".md", ".markdown", ".mdx", ".rst", ".txt", ".text", ".adoc", ".org", ".tex", ".log")
_TABLES = (".csv", ".tsv")
_PAGES = (".html", ".htm", ".xhtml")
_SAVE_AS = {
    **dict.fromkeys((".docx", ".doc", ".odt", ".rtf", ".pptx", ".epub"), "save it as PDF or text"),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "save the sheet as CSV"),
    **dict.fromkeys((".zip", ".gz", ".tar", ".bz2", ".xz", ".7z"), "unpack it"),
}
_TITLE_WORDS = 160  # characters of a title
_FRONT = re.compile(r"---[ \t]*\n(?P<lines>(?:(?!---[ \t]*$).*\n)*)---[ \t]*(?:\n|\Z)", re.MULTILINE)
_TITLE = re.compile(r"^title: *['\"]?(?P<title>.*?)['\"]? *$", re.MULTILINE)
_HEADING = re.compile(r"^(?:#{1,3} +(?P<marked>.+?)#*|(?P<under>\S.*)\n[=~-]{3,}) *$", re.MULTILINE)


class Unreadable(ValueError):
    """A file that gives no document; the text says why and what to do."""


def known(suffix: str) -> bool:
    """Whether files with ``suffix`` are documents, also those that cannot be read."""
    return suffix in (*_TEXTS, *_PAGES, *_TABLES, ".pdf", *_SAVE_AS)


def documents(path: Path) -> Iterator[Document]:
    """The documents of a file whose suffix is :func:`known`: one, or one a row of a table. Unreadable if none."""
    suffix = path.suffix.lower()
    if suffix in _SAVE_AS:
        raise Unreadable(f"{suffix} files are not read: {_SAVE_AS[suffix]}")
    read = _html if suffix in _PAGES else _table if suffix in _TABLES else _pdf if suffix == ".pdf" else _text
    found = 0
    for title, text in read(path):
        lines = [" ".join(line.split()) for line in text.splitlines()]
        clean = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
        if clean:
            found += 1
            yield " ".join(title.split())[:_TITLE_WORDS] or path.stem, clean
    if not found:
        raise Unreadable("holds no text")


def _decoded(path: Path) -> str:
    problems = Problems(path.name)
    text = read_text(path, problems)
    try:
        problems.check()
    except DataError as error:
        raise Unreadable(str(error).removeprefix(f"{path.name}: ")) from None
    return text or ""


def _text(path: Path) -> Iterator[Document]:
    text = _decoded(path)
    front = _FRONT.match(text)
    if front and (title := _TITLE.search(front["lines"])):
        yield title["title"], text[front.end() :]
        return
    start = front.end() if front else 0  # the line that closes front matter underlines no heading
    heading = _HEADING.search(text, start, start + 4000)
    named = (heading["marked"] or heading["under"] or "") if heading else ""
    yield re.sub(r"[`*]|\]\([^)]*\)|[\[\]]", "", named), text


def _html(path: Path) -> Iterator[Document]:
    try:
        from resiliparse.extract.html2text import extract_plain_text  # pyright: ignore[reportMissingImports]
        from resiliparse.parse.encoding import detect_encoding  # pyright: ignore[reportMissingImports]
        from resiliparse.parse.html import HTMLTree  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Unreadable(_MISSING.format("resiliparse")) from None
    data = path.read_bytes()
    try:
        tree = HTMLTree.parse_from_bytes(data, detect_encoding(data) or "utf-8")
        main = extract_plain_text(tree, main_content=True, alt_texts=False)
        whole = main if len(main) > _LEAST_MAIN else extract_plain_text(tree, alt_texts=False)
    except (ValueError, RuntimeError) as error:
        raise Unreadable(f"is no HTML that can be read ({type(error).__name__}: {str(error)[:120]})") from None
    yield tree.title or "", whole


_LEAST_MAIN = 200  # characters of what counts as a page's main part; below, all of it is taken
_MISSING = "needs the package {}: pip install 'parl-swarm[documents]'"


def _pdf(path: Path) -> Iterator[Document]:
    try:
        from pypdf import PdfReader  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Unreadable(_MISSING.format("pypdf")) from None
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of every oddity that it mends
    try:
        reader = PdfReader(path)
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("is locked with a password: save a copy without one")
        pages = [page.extract_text() for page in reader.pages]
        title = (reader.metadata or {}).get("/Title")
    except Unreadable:
        raise
    except Exception as error:  # of any kind: pypdf names none that broken files keep to
        raise Unreadable(f"is damaged or of an unknown form ({type(error).__name__}: {str(error)[:120]})") from None
    if not any(text.strip() for text in pages):
        raise Unreadable(f"its {len(pages)} pages hold pictures and no text: it needs text recognition first")
    yield str(title or ""), "\n\n".join(f"[page {number}]\n{text}" for number, text in enumerate(pages, 1))


def _table(path: Path) -> Iterator[Document]:
    """A document for each row, titled by its first cell, with a line ``column: value`` for each other."""
    problems = Problems(path.name)
    try:
        grid = read_csv(_decoded(path), problems, path.suffix.lower())
        problems.check()
    except (DataError, csv.Error) as error:
        raise Unreadable(str(error).removeprefix(f"{path.name}: ")) from None
    if grid is None:
        raise Unreadable("holds no table")
    for _, row in grid.rows:
        cells = [f"{name}: {cell}" for name, cell in zip(grid.header, row, strict=True) if cell]
        yield row[0], "\n".join(cells)
