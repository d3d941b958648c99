"""Hosted search and page readers: how each is asked, and its replies in one normal form.

Requests and replies follow each service's public documentation; no service was asked for real: serper.dev,
docs.tavily.com (SDK 0.7), docs.exa.ai (SDK 1.x), api.search.brave.com/app/documentation, docs.searxng.org
(dev/search_api), jina.ai/reader and s.jina.ai, docs.firecrawl.dev (v2), docs.crawl4ai.com (the Docker server).
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One result of a search. ``date`` as the service writes it; ``score`` None where there is none."""

    title: str
    url: str
    snippet: str
    date: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent. ``query``: parameters of a GET; ``body``: JSON of a POST. ``headers`` without the key."""

    path: str
    query: dict[str, str] | None = None
    body: dict[str, Any] | None = None
    headers: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """A search service. ``key``: the environment variable of its key; ``header``: how the key is sent.

    ``asks``: the request for (query, number of results). ``hits``: those of a reply; raises KeyError, TypeError
    or ValueError for a reply of another form.
    """

    url: str
    key: str
    header: str
    asks: Callable[[str, int], Request]
    hits: Callable[[Any], list[Hit]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """A service that reads pages. ``asks``: the request for a URL. ``text``: title and text of a reply."""

    url: str
    key: str
    header: str
    asks: Callable[[str], Request]
    text: Callable[[Any], tuple[str, str]]
    keyless: bool = False  # it answers without a key too


BEARER = "Authorization"


def _hits(rows: Any, url: str, *snippets: str, date: str = "", score: str = "") -> list[Hit]:
    """Rows whose fields have these names; ``snippets``: the first that is there."""
    if not isinstance(rows, list):
        raise ValueError("the results are no list")
    found = []
    for row in rows:
        if not isinstance(row.get(url), str):
            continue
        given = next((row[name] for name in snippets if row.get(name)), "")
        text = " … ".join(map(str, given)) if isinstance(given, list) else str(given)
        number = row.get(score) if score else None
        found.append(
            Hit(
                title=_plain(str(row.get("title") or row[url])),
                url=row[url],
                snippet=_plain(text),
                date=str(row.get(date) or "") if date else "",
                score=float(number) if isinstance(number, int | float) else None,
            )
        )
    return found


def _plain(text: str) -> str:
    """Without the marks of matches (``<strong>``), entities and line breaks."""
    return " ".join(html.unescape(re.sub(r"</?(?:strong|b|em|mark|span)[^>]*>", "", text)).split())


SEARCHES: dict[str, Search] = {
    "serper": Search(
        url="https://google.serper.dev",
        key="SERPER_API_KEY",
        header="X-API-KEY",
        asks=lambda query, count: Request(path="/search", body={"q": query, "num": count}),
        hits=lambda reply: _hits(reply.get("organic", []), "link", "snippet", date="date"),
    ),
    "tavily": Search(
        url="https://api.tavily.com",
        key="TAVILY_API_KEY",
        header=BEARER,
        asks=lambda query, count: Request(path="/search", body={"query": query, "max_results": count}),
        hits=lambda reply: _hits(reply["results"], "url", "content", date="published_date", score="score"),
    ),
    "exa": Search(
        url="https://api.exa.ai",
        key="EXA_API_KEY",
        header="x-api-key",
        asks=lambda query, count: Request(
            path="/search", body={"query": query, "numResults": count, "contents": {"highlights": True}}
        ),
        hits=lambda reply: _hits(
            reply["results"], "url", "highlights", "summary", "text", date="publishedDate", score="score"
        ),
    ),
    "brave": Search(
        url="https://api.search.brave.com",
        key="BRAVE_API_KEY",
        header="X-Subscription-Token",
        asks=lambda query, count: Request(path="/res/v1/web/search", query={"q": query, "count": str(min(count, 20))}),
        hits=lambda reply: _hits(reply.get("web", {}).get("results", []), "url", "description", date="page_age"),
    ),
    "searxng": Search(
        url="",
        key="",
        header="",
        asks=lambda query, count: Request(path="/search", query={"q": query, "format": "json"}),
        hits=lambda reply: _hits(reply["results"], "url", "content", date="publishedDate", score="score"),
    ),
    "jina": Search(
        url="https://s.jina.ai",
        key="JINA_API_KEY",
        header=BEARER,
        asks=lambda query, count: Request(path="/", query={"q": query}, headers={"X-Respond-With": "no-content"}),
        hits=lambda reply: _hits(reply["data"], "url", "description", "content", date="date"),
    ),
    "firecrawl": Search(
        url="https://api.firecrawl.dev",
        key="FIRECRAWL_API_KEY",
        header=BEARER,
        asks=lambda query, count: Request(path="/v2/search", body={"query": query, "limit": count}),
        hits=lambda reply: _hits(
            reply["data"]["web"] if isinstance(reply["data"], dict) else reply["data"], "url", "description", "markdown"
        ),
    ),
}


def _firecrawl_page(reply: Any) -> tuple[str, str]:
    data = reply["data"]
    return str(data.get("metadata", {}).get("title") or ""), str(data["markdown"])


READERS: dict[str, Reader] = {
    "jina": Reader(
        url="https://r.jina.ai",
        key="JINA_API_KEY",
        header=BEARER,
        asks=lambda url: Request(path="/", body={"url": url}),
        text=lambda reply: (str(reply["data"].get("title") or ""), str(reply["data"]["content"])),
        keyless=True,
    ),
    "firecrawl": Reader(
        url="https://api.firecrawl.dev",
        key="FIRECRAWL_API_KEY",
        header=BEARER,
        asks=lambda url: Request(path="/v2/scrape", body={"url": url, "formats": ["markdown"]}),
        text=_firecrawl_page,
    ),
    "crawl4ai": Reader(
        url="",
        key="CRAWL4AI_API_TOKEN",
        header=BEARER,
        asks=lambda url: Request(path="/md", body={"url": url, "f": "fit"}),
        text=lambda reply: ("", str(reply["markdown"])),
        keyless=True,
    ),
}
