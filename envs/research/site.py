"""The tools over a corpus as an HTTP application: ``POST /corpus/{tool}``, JSON in, ``{text, error}`` out.

Status 200 for a result, 404 for an unknown page or path, 422 for arguments that do not fit the tool. What an
agent reads:

    search {"queries": ["Peru median age", "Chad capital"]}
        Peru median age
        p4711 Peru: People and Society
        Chad capital
        p1208 Chad: Government
    open {"page": "p4711"}                        the title, then the text; a long page in parts
    find {"page": "p4711", "text": "median age"}  the lines with these words; several alternatives: a|b
"""

from __future__ import annotations

import json
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from envs.base import ErrorKind, ToolSpec
from envs.research.corpus import Corpus, plain_words

PLACE = "corpus"
NO_RESULTS, NO_MATCH, NOT_FOUND = "no results", "no match", "no such page"
MAX_QUERIES = 8
_MAX_LINES = 12  # of a find
_AROUND = 160  # characters shown before and after a match in a long line
_STATUS = {None: 200, ErrorKind.NOT_FOUND: 404, ErrorKind.UNKNOWN_TOOL: 404, ErrorKind.BAD_ARGS: 422}
Answer = tuple[str, ErrorKind | None]

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_KINDS = {"string": "a text", "array": "a list of texts", "integer": "a whole number"}


def _spec(name: str, description: str, properties: dict[str, Any], *required: str) -> ToolSpec:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return ToolSpec(name=name, description=description, parameters=schema)


TOOLS = (  # short descriptions: every agent reads them
    _spec("search", "Search pages, several queries at once.", {"queries": _TEXTS}, "queries"),
    _spec("open", "Read a page; long ones in parts.", {"page": _TEXT, "part": {"type": "integer"}}, "page"),
    _spec("find", "Lines of a page with words; a|b for either.", {"page": _TEXT, "text": _TEXT}, "page", "text"),
)


class Site:
    """The three tools. ``results``: hits of a query; ``snippet``: words shown of each; ``part``: characters."""

    def __init__(self, corpus: Corpus, *, results: int, snippet: int, part: int) -> None:
        self.corpus, self._results, self._snippet, self._part = corpus, results, snippet, part

    def app(self) -> Starlette:
        """The HTTP application."""
        return Starlette(routes=[Route(f"/{PLACE}/{{tool}}", self._endpoint, methods=["POST"])])

    async def _endpoint(self, request: Request) -> Response:
        text, error = self.run(request.path_params["tool"], await request.body())
        body = json.dumps({"text": text, "error": error}, ensure_ascii=True)
        return Response(body, status_code=_STATUS[error], media_type="application/json")

    def run(self, tool: str, body: bytes) -> Answer:
        """The answer to a call with the JSON object ``body``."""
        known = {"search": self._search, "open": self._open, "find": self._find}
        if tool not in known:
            return f"error: unknown tool {tool}", ErrorKind.UNKNOWN_TOOL
        spec = next(spec for spec in TOOLS if spec.name == tool)
        arguments = _arguments(body, spec)
        if isinstance(arguments, str):
            return f"error: {arguments}", ErrorKind.BAD_ARGS
        return known[tool](**arguments)

    def _search(self, queries: list[str] | str) -> Answer:
        asked = [queries] if isinstance(queries, str) else queries
        if not asked:
            return "error: queries is empty", ErrorKind.BAD_ARGS
        if len(asked) > MAX_QUERIES:
            return f"error: {len(asked)} queries, at most {MAX_QUERIES} at once", ErrorKind.BAD_ARGS
        blocks = []
        for query in asked:
            hits = self.corpus.search(query, self._results, self._snippet)
            lines = [f"{hit.id} {hit.title}" + (f"\n  {_one_line(hit.snippet)}" if hit.snippet else "") for hit in hits]
            blocks.append("\n".join([_one_line(query), *lines] if hits else [_one_line(query), NO_RESULTS]))
        return "\n".join(blocks), None

    def _open(self, page: str, part: int = 1) -> Answer:
        found = self.corpus.page(page.strip())
        if found is None:
            return f"error: {NOT_FOUND}", ErrorKind.NOT_FOUND
        parts = split_parts(found.text, self._part)
        if not 1 <= part <= len(parts):
            return f"error: part {part} of {len(parts)}", ErrorKind.NOT_FOUND
        of = f" (part {part} of {len(parts)})" if len(parts) > 1 else ""
        return f"{found.title}{of}\n{parts[part - 1]}", None

    def _find(self, page: str, text: str) -> Answer:
        found = self.corpus.page(page.strip())
        if found is None:
            return f"error: {NOT_FOUND}", ErrorKind.NOT_FOUND
        wanted = [words for part in text.split("|") if (words := plain_words(part)).strip()]
        if not wanted:
            return "error: text has no words", ErrorKind.BAD_ARGS
        lines = [shown for line in found.text.splitlines() if (shown := passage(line, wanted))]
        more = [f"... {len(lines) - _MAX_LINES} more lines"] if len(lines) > _MAX_LINES else []
        return "\n".join([*lines[:_MAX_LINES], *more]) or NO_MATCH, None


def split_parts(text: str, size: int) -> list[str]:
    """``text`` in parts of at most ``size`` characters, cut at line ends where possible; at least one."""
    parts, rest = [], text
    while len(rest) > size:
        cut = rest.rfind("\n", 1, size + 1)
        if cut < size // 2:  # a long line: at a blank, or anywhere
            cut = max(rest.rfind(" ", size // 2, size + 1), cut)
        cut = cut if cut > 0 else size
        parts.append(rest[:cut])
        rest = rest[cut:].lstrip("\n ") if rest[cut : cut + 1] in ("\n", " ") else rest[cut:]
    return [*parts, rest]


def passage(line: str, wanted: list[str]) -> str:
    """``line`` if it has the words of one of ``wanted`` in this order, of a long one the text around; else ""."""
    words = plain_words(line)
    if not any(each in words for each in wanted):
        return ""
    if len(line) <= 2 * _AROUND:
        return line
    first = next(each for each in wanted if each in words).split()[0]
    label, _, _ = line.partition(": ")
    at = max(plain_position(line, first), 0)
    if at < _AROUND:
        return line[: 2 * _AROUND].rstrip() + " ..."
    start = f"{label}: " if len(label) < 60 else ""
    return f"{start}... {line[at - _AROUND : at + _AROUND].strip()} ..."


def plain_position(line: str, word: str) -> int:
    """Where ``word``, folded, begins in ``line``; -1 if folding moved it."""
    return line.casefold().find(word)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _arguments(body: bytes, spec: ToolSpec) -> dict[str, Any] | str:
    """The arguments, or what is wrong with them in one phrase."""
    try:
        arguments: Any = json.loads(body)
    except ValueError:
        return "bad JSON"
    if not isinstance(arguments, dict):
        return "bad JSON"
    properties = spec.parameters["properties"]
    for name in spec.parameters["required"]:
        if name not in arguments:
            return f"missing {name}"
    for name, value in arguments.items():
        if name not in properties:
            return f"unknown argument {name[:40]}"
        if not _fits(value, properties[name]["type"]):
            return f"{name} must be {_KINDS[properties[name]['type']]}"
    return arguments


def _fits(value: Any, kind: str) -> bool:
    if kind == "array":  # a single text stands for a list of one
        return isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, str) for each in value))
    return isinstance(value, int) and not isinstance(value, bool) if kind == "integer" else isinstance(value, str)
