"""The tool ``fetch``: a page of the web as text, through the guard, or by a service that reads pages."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any, Literal

import httpx
from pydantic import Field

from envs.base import ErrorKind, Section, ToolCall, ToolResult
from envs.plugs.session import Refused
from envs.tools import guard
from envs.tools.files import page
from envs.tools.hosted import READERS
from envs.tools.kit import Kit, Opened, spec
from envs.tools.service import Service
from envs.tools.text import TEXTS, decoded, extracted

_PAGES = 256  # kept, so that the next part of a page need not be fetched again


class FetchConfig(Section):
    """Pages of the web as text."""

    backend: Literal["direct", "jina", "firecrawl", "crawl4ai"] = Field(
        default="direct", description="who reads the page: this machine, or a service (with its key in the environment)"
    )
    url: str = Field(default="", description="a server of your own (crawl4ai), or a proxy; empty = the service's own")
    extract: Literal["html", "resiliparse", "trafilatura"] = Field(
        default="html", description="what makes text of a page; the last two are packages (extra pages)"
    )
    page_chars: int = Field(default=8000, gt=0, description="characters that one call returns")
    at_once: int = Field(default=16, gt=0, description="pages that are read at the same time")
    loopback_ports: tuple[int, ...] = Field(
        default=(), description="ports of this machine that may be opened, for tests"
    )


class FetchKit(Kit):
    """Pages for an environment. ``blocked``: domains that are not opened, nor redirected to."""

    specs = (
        spec(
            "fetch",
            "Read a web page as text, from the character `start` on; `find` shows only the lines that contain a text.",
            ("url",),
            url={"type": "string"},
            start={"type": "integer", "minimum": 0},
            find={"type": "string"},
        ),
    )

    def __init__(self, config: FetchConfig, blocked: tuple[str, ...]) -> None:
        self.config, self._blocked = config, blocked
        self._guard: guard.Guard | None = None
        self._service: Service | None = None
        self._slots: asyncio.Semaphore | None = None
        self._pages: OrderedDict[str, str] = OrderedDict()

    def check(self) -> None:
        """ValueError without a package, an address or a key."""
        if self.config.backend != "direct":
            Service(READERS[self.config.backend], self.config.url, 1).check("envs.config.fetch")
        try:
            extracted("<p>x", self.config.extract)
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from None

    def open(self, folder: str | None) -> Opened:
        """See :class:`Kit`."""
        return _Fetch(self)

    async def close(self) -> None:
        """Close all connections and forget the pages."""
        found, service = self._guard, self._service
        self._guard = self._service = self._slots = None
        self._pages.clear()
        if found:
            await found.close()
        if service:
            await service.close()

    async def text(self, url: str, deadline_s: float) -> str:
        """The whole text of a page, its title first."""
        if (text := self._pages.get(url)) is not None:
            return text
        self._guard = self._guard or guard.Guard(blocked=self._blocked, loopback_ports=self.config.loopback_ports)
        self._slots = self._slots or asyncio.Semaphore(self.config.at_once)
        async with self._slots:
            read = self._direct if self.config.backend == "direct" else self._hosted
            try:
                title, text = await read(self._guard, url, deadline_s)
            except guard.Refused as refused:
                raise Refused(ErrorKind.BAD_ARGS, str(refused)) from None
        text = self._pages[url] = f"{title}\n{text}" if title and not text.startswith(title) else text
        while len(self._pages) > _PAGES:
            self._pages.popitem(last=False)
        return text

    async def _direct(self, opened: guard.Guard, url: str, deadline_s: float) -> tuple[str, str]:
        try:
            found = await opened.fetch(url, deadline_s=deadline_s)
        except httpx.TransportError as error:  # of a site that the model chose: not this machine's fault
            raise Refused(ErrorKind.SERVER, f"the page cannot be loaded ({type(error).__name__})") from None
        if found.status >= 400:
            kinds = {404: ErrorKind.NOT_FOUND, 410: ErrorKind.NOT_FOUND, 429: ErrorKind.RATE_LIMITED}
            raise Refused(kinds.get(found.status, ErrorKind.SERVER), f"the page answers {found.status}")
        if not (found.kind.startswith("text/") or found.kind in TEXTS or found.kind.endswith(("+xml", "+json"))):
            raise Refused(ErrorKind.BAD_ARGS, f"a page of the kind {found.kind} is no text")
        text = decoded(found.data, found.charset)
        if "html" in found.kind or (not found.kind and "<html" in text[:1000].lower()):
            return await asyncio.to_thread(extracted, text, self.config.extract)
        return "", text

    async def _hosted(self, opened: guard.Guard, url: str, deadline_s: float) -> tuple[str, str]:
        """By a service; the URL is checked all the same, since the service may be in this network."""
        asked = opened.check(url)
        if self.config.url:
            await opened.addresses(asked.host, asked.port or 443)
        kind = READERS[self.config.backend]
        if self._service is None:
            self._service = Service(kind, self.config.url, self.config.at_once)
        reply = await self._service.ask(kind.asks(str(asked)), deadline_s)
        try:
            return kind.text(reply)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise Refused(ErrorKind.SERVER, "the service's reply has another form than documented") from None


class _Fetch(Opened):
    def __init__(self, kit: FetchKit) -> None:
        self._kit = kit

    async def run(self, agent_id: str, call: ToolCall, deadline_s: float) -> ToolResult:
        url, start, find = (
            call.arguments.get(name, other) for name, other in (("url", None), ("start", 0), ("find", ""))
        )
        if not isinstance(url, str) or not isinstance(start, int) or start < 0 or not isinstance(find, str):
            raise Refused(ErrorKind.BAD_ARGS, "url and find must be texts, and start a number from 0")
        text = await self._kit.text(url, deadline_s)
        if find:
            return ToolResult(text=page(_lines(text, find), start, self._kit.config.page_chars))
        return ToolResult(text=page(text, start, self._kit.config.page_chars) or "the page is empty")


def _lines(text: str, find: str) -> str:
    wanted: Any = find.casefold()
    return "\n".join(line for line in text.split("\n") if wanted in line.casefold()) or f"{find!r} is not on the page"
