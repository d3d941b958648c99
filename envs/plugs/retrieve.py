"""A retriever behind ``/retrieve``, as Search-R1, SkyRL-Gym and BrowseComp-Plus have it: queries in, documents out.

Request: ``{"queries": [...], "topk": 3, "return_scores": true}``, or one ``query``. Reply: ``{"result": [...]}``,
a list of hits for each query, or the hits of the only one. A hit has a ``document`` with ``contents`` (its first
line the title in quotes), or with ``title`` and ``text``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import httpx
from pydantic import Field, field_validator
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from envs.base import ErrorKind, Task, ToolCall, ToolResult, ToolSpec
from envs.plugs.session import PlugEnvironment, PlugSection, PlugSession, Refused, ServerLost, offered, reason

_GONE = (502, 503, 504)  # a proxy's answers for a missing server
_TRIES = 3  # to connect
_PROBE_S = 30.0
_CONNECTIONS = 16  # httpx scans every connection for each request


class RetrieveConfig(PlugSection):
    """A retriever behind HTTP."""

    url: str = Field(description="such as http://127.0.0.1:8000/retrieve")
    topk: int = Field(default=3, gt=0, description="documents for each query")
    form: Literal["queries", "query"] = Field(
        default="queries", description="whether the server takes a list of queries (Search-R1) or one (SkyRL)"
    )

    @field_validator("url")
    @classmethod
    def _check(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://, and end with the path, such as /retrieve")
        return url


class RetrieveEnvironment(PlugEnvironment):
    """One tool, ``search``, over a retriever."""

    Config = RetrieveConfig
    config: RetrieveConfig
    neutral = frozenset({"url"})  # its address says nothing about its documents
    spreads = True
    stateless = True

    def __init__(self, config: RetrieveConfig) -> None:
        super().__init__(config)
        self._client: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"])

    def tools(self) -> tuple[ToolSpec, ...]:
        """``search``, with several queries at once."""
        queries = {"type": "array", "items": {"type": "string"}, "minItems": 1, "description": "one or several"}
        schema = {"type": "object", "properties": {"queries": queries}, "required": ["queries"]}
        about = f"Search the documents; the best {self.config.topk} for each query are returned."
        return (ToolSpec(name="search", description=about, parameters=schema),)

    def notes(self) -> Iterator[str]:
        """ValueError if the retriever does not answer as it should."""
        offered(self.config, self.tools())
        try:
            with httpx.Client(timeout=_PROBE_S, trust_env=False) as client:
                reply = client.post(self.config.url, json=_body(self.config, ["test"]))
            reply.raise_for_status()
            found = _hits(reply.json(), 1)
        except httpx.HTTPStatusError as error:
            code = error.response.status_code
            hint = "; it may want the other of envs.config.form: queries, query" if code == 422 else ""
            said = f"answers {code}: {reason(error.response.content.decode('utf-8', 'replace'))}{hint}"
            raise ValueError(f"envs.config.url = {self.config.url}: {said}") from error
        except (httpx.HTTPError, ValueError) as error:
            raise ValueError(f"envs.config.url = {self.config.url}: {type(error).__name__}: {error}") from error
        if not found[0]:
            yield f'envs.config.url = {self.config.url}: no document for the query "test"'

    async def open(self, task: Task, *, seed: int = 0, attempt: int = 0) -> RetrieveSession:
        """A session; all sessions share a client."""
        return RetrieveSession(offered(self.config, self.tools()), self.config, self._http())

    async def close(self) -> None:
        """Close the client; the environment can be used again."""
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    def _http(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._loop is not loop:  # a pool belongs to its event loop
            limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
            self._client = httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)  # calls have deadlines
            self._loop = loop
        return self._client


class RetrieveSession(PlugSession):
    """One episode's ``search``."""

    def __init__(self, offered: Any, config: RetrieveConfig, client: httpx.AsyncClient) -> None:
        super().__init__(offered, config.result_chars)
        self._config, self._client = config, client

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        """See :class:`PlugSession`."""
        given = call.arguments.get("queries", call.arguments.get("query"))
        queries = [given] if isinstance(given, str) else given
        if not isinstance(queries, list) or not queries or not all(isinstance(q, str) and q.strip() for q in queries):
            raise Refused(ErrorKind.BAD_ARGS, "queries must be a list of texts")
        if self._config.form == "queries":
            found = await self._asked(queries)
        else:
            found = [hits for part in await asyncio.gather(*(self._asked([q]) for q in queries)) for hits in part]
        many = len(queries) > 1
        parts = [_shown(hits, f"{query}\n" if many else "") for query, hits in zip(queries, found, strict=True)]
        return ToolResult(text="\n\n".join(parts))

    async def _asked(self, queries: list[str]) -> list[list[Any]]:
        waiting = wait_random_exponential(multiplier=0.1, max=2)
        lost = retry_if_exception_type(httpx.ConnectError)
        try:
            async for attempt in AsyncRetrying(stop=stop_after_attempt(_TRIES), wait=waiting, retry=lost, reraise=True):
                with attempt:
                    reply = await self._client.post(self._config.url, json=_body(self._config, queries))
        except httpx.TransportError as error:
            raise ServerLost(f"{self._config.url}: {type(error).__name__}: {error}") from error
        if reply.status_code in _GONE:
            raise ServerLost(f"{self._config.url}: status {reply.status_code}")
        if reply.status_code == 429:
            raise Refused(ErrorKind.RATE_LIMITED, "too many requests; try again later")
        if reply.is_error:
            raise Refused(ErrorKind.SERVER, f"the retriever answers {reply.status_code}")
        try:
            return _hits(reply.json(), len(queries))
        except (json.JSONDecodeError, ValueError) as error:
            raise Refused(ErrorKind.SERVER, f"the retriever's reply: {error}") from error


def _body(config: RetrieveConfig, queries: list[str]) -> dict[str, Any]:
    asked = {"queries": queries} if config.form == "queries" else {"query": queries[0]}
    return asked | {"topk": config.topk, "return_scores": True}  # without scores Search-R1's server fails


def _hits(reply: Any, count: int) -> list[list[Any]]:
    """The hits of each of ``count`` queries; ValueError for another reply."""
    result = reply.get("result") if isinstance(reply, dict) else None
    if not isinstance(result, list):
        raise ValueError('no list "result"')
    if count == 1 and (not result or not isinstance(result[0], list)):
        result = [result]
    if len(result) != count or not all(isinstance(hits, list) for hits in result):
        raise ValueError(f"{len(result)} lists of documents for {count} queries")
    for hit in (hit for hits in result for hit in hits):
        _title_and_text(hit)
    return result


def _title_and_text(hit: Any) -> tuple[str, str]:
    document = hit.get("document", hit) if isinstance(hit, dict) else None
    if isinstance(document, str):
        return "", document
    if not isinstance(document, dict):
        raise ValueError("a hit that is no object")
    contents = document.get("contents", document.get("content"))
    if isinstance(contents, str):
        first, _, rest = contents.strip().partition("\n")
        return (first.strip('"'), rest) if rest else ("", first)
    text = document.get("text")
    if not isinstance(text, str):
        raise ValueError('a document without "contents" or "text"')
    return str(document.get("title") or ""), text


def _shown(hits: list[Any], heading: str) -> str:
    shown = []
    for number, hit in enumerate(hits, 1):
        title, text = _title_and_text(hit)
        shown.append(f"[{number}] {title}\n{text.strip()}" if title else f"[{number}] {text.strip()}")
    return heading + ("\n".join(shown) or "no document")
