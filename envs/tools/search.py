"""The tool ``search``: several queries at once at a hosted service, in one normal form."""

from __future__ import annotations

import asyncio
from typing import Literal

from pydantic import Field

from envs.base import ErrorKind, Section, ToolCall, ToolResult
from envs.plugs.session import Refused
from envs.tools.domains import Domains
from envs.tools.hosted import SEARCHES, Hit
from envs.tools.kit import Kit, Opened, spec
from envs.tools.service import Service

_QUERIES, _LONGEST = 10, 400


class SearchConfig(Section):
    """Search of the web. The key comes from an environment variable, such as SERPER_API_KEY."""

    backend: Literal["serper", "tavily", "exa", "brave", "searxng", "jina", "firecrawl"]
    url: str = Field(default="", description="a server of your own (searxng), or a proxy; empty = the service's own")
    results: int = Field(default=8, gt=0, le=50, description="results for each query")
    at_once: int = Field(default=8, gt=0, description="requests to the service at the same time")


class SearchKit(Kit):
    """One service for an environment. ``blocked``: domains that no result may be of."""

    specs = (
        spec(
            "search",
            "Search the web with one or several queries at once.",
            ("queries",),
            queries={"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": _QUERIES},
        ),
    )

    def __init__(self, config: SearchConfig, blocked: Domains) -> None:
        self.config, self._blocked = config, blocked
        self._kind = SEARCHES[config.backend]
        self._service: Service | None = None

    def check(self) -> None:
        """ValueError without an address or a key."""
        Service(self._kind, self.config.url, 1).check("envs.config.search")

    def open(self, folder: str | None) -> Opened:
        """See :class:`Kit`."""
        return _Search(self)

    async def close(self) -> None:
        """Close the client."""
        service, self._service = self._service, None
        if service:
            await service.close()

    async def hits(self, query: str, deadline_s: float) -> list[Hit]:
        """The results of one query, without blocked domains and without repeats."""
        if self._service is None:
            self._service = Service(self._kind, self.config.url, self.config.at_once)
        reply = await self._service.ask(self._kind.asks(query, self.config.results), deadline_s)
        try:
            found = self._kind.hits(reply)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Refused(ErrorKind.SERVER, "the service's reply has another form than documented") from None
        kept: dict[str, Hit] = {}
        for hit in found:
            if not self._blocked.holds_url(hit.url):
                kept.setdefault(hit.url, hit)
        return list(kept.values())[: self.config.results]


class _Search(Opened):
    def __init__(self, kit: SearchKit) -> None:
        self._kit = kit

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        given = call.arguments.get("queries", call.arguments.get("query"))
        queries = [given] if isinstance(given, str) else given
        if not isinstance(queries, list) or not 0 < len(queries) <= _QUERIES:
            raise Refused(ErrorKind.BAD_ARGS, f"queries must be a list of 1 to {_QUERIES} texts")
        if not all(isinstance(query, str) and query.strip() for query in queries):
            raise Refused(ErrorKind.BAD_ARGS, "each query must be a text")
        asked = [self._kit.hits(query.strip()[:_LONGEST], deadline_s) for query in queries]
        found = await asyncio.gather(*asked)
        parts = [_shown(hits, query if len(queries) > 1 else "") for query, hits in zip(queries, found, strict=True)]
        return ToolResult(text="\n\n".join(parts))


def _shown(hits: list[Hit], query: str) -> str:
    rows = [
        "\n".join(filter(None, (f"[{number}] {hit.title}", hit.url, f"{hit.date} {hit.snippet}".strip())))
        for number, hit in enumerate(hits, 1)
    ]
    return "\n".join(filter(None, (query, *(rows or ["no results"]))))
