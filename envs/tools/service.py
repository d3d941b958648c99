"""Asks hosted services: keys, deadlines, retries, a cap on size, and a cache that all agents share."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import OrderedDict
from typing import Any

import httpx

from envs.base import ErrorKind
from envs.plugs.session import Refused, ServerLost
from envs.tools.hosted import BEARER, Reader, Request, Search

_TRIES, _LONGEST_S = 3, 2.0  # a swarm is better told than kept waiting
_BYTES = 1 << 23
_CACHED = 2000
_LOCAL = ("127.0.0.1", "localhost", "::1")


class Service:
    """One service. ``url`` in place of its own: a proxy, a server of one's own. Bound to one event loop at a time.

    A reply is asked for once: equal requests wait for it, and later ones find it in the cache.
    """

    def __init__(self, kind: Search | Reader, url: str, at_once: int) -> None:
        self._kind, self._url, self._at_once = kind, (url or kind.url).rstrip("/"), at_once
        self._client: httpx.AsyncClient | None = None
        self._slots = asyncio.Semaphore(at_once)
        self._cache: OrderedDict[str, asyncio.Task[Any]] = OrderedDict()

    def check(self, key: str) -> None:
        """ValueError, with the configuration's ``key``, if address or API key are missing or unsafe."""
        if not self._url:
            raise ValueError(f"{key}.url: this back end is a server of your own; name its address")
        parsed = httpx.URL(self._url)
        if parsed.scheme not in ("http", "https") or parsed.userinfo or parsed.query:
            raise ValueError(f"{key}.url: must be http:// or https://, without a password or a query")
        name, given = self._kind.key, self._key()
        if name and not given and not getattr(self._kind, "keyless", False):
            raise ValueError(f"{key}: the environment variable {name} is not set")
        if given and parsed.scheme == "http" and parsed.host not in _LOCAL:
            raise ValueError(f"{key}.url: {name} would be sent over plain http; use https")

    async def ask(self, request: Request, deadline_s: float) -> Any:
        """The reply's JSON. Refused for what the service refuses, ServerLost if it cannot be used at all."""
        name = json.dumps([request.path, request.query, request.body], sort_keys=True)
        task = self._cache.get(name)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._cache[name] = asyncio.create_task(self._tried(request, deadline_s))
        self._cache.move_to_end(name)
        while len(self._cache) > _CACHED:
            self._cache.popitem(last=False)
        return await asyncio.shield(task)  # one agent's end must not end it for the others

    async def close(self) -> None:
        """Close the client and forget the replies; the service can be used again, on another loop."""
        client, self._client = self._client, None
        for task in self._cache.values():
            task.cancel()
        self._cache.clear()
        self._slots = asyncio.Semaphore(self._at_once)
        if client:
            await client.aclose()

    async def _tried(self, request: Request, deadline_s: float) -> Any:
        async with asyncio.timeout(deadline_s), self._slots:
            for left in reversed(range(_TRIES)):
                try:
                    status, wait_s, data = await self._once(request)
                except httpx.TransportError as error:
                    if not left:
                        raise ServerLost(f"{self._url}: {type(error).__name__}") from None
                    status, wait_s, data = 0, 0.0, b""
                if status and status != 429 and status < 500:
                    break
                if left:
                    await asyncio.sleep(min(max(wait_s, random.uniform(0.05, 0.3)), _LONGEST_S))
        return self._read(status, data)

    async def _once(self, request: Request) -> tuple[int, float, bytes]:
        """Status, the seconds of Retry-After, and the body."""
        if self._client is None:
            limits = httpx.Limits(max_connections=self._at_once, max_keepalive_connections=self._at_once)
            self._client = httpx.AsyncClient(timeout=None, limits=limits)
        headers = {"Accept": "application/json", **(request.headers or {})}
        if key := self._key():
            headers[self._kind.header] = f"Bearer {key}" if self._kind.header == BEARER else key
        method = "GET" if request.body is None else "POST"
        given = {"params": request.query, "json": request.body, "headers": headers}
        async with self._client.stream(method, self._url + request.path, **given) as reply:
            data = bytearray()
            async for part in reply.aiter_bytes():
                data += part
                if len(data) > _BYTES:
                    raise Refused(ErrorKind.SERVER, "the reply is too large")
            after = reply.headers.get("retry-after", "")
            return reply.status_code, float(after) if after.isdigit() else 0.0, bytes(data)

    def _read(self, status: int, data: bytes) -> Any:
        """The JSON of a good reply. What the service writes into errors is not shown: it may repeat the key."""
        if status in (401, 402, 403):
            raise ServerLost(
                f"{self._url} answers {status}: is {self._kind.key or 'its JSON form'} valid, and paid for?"
            )
        if status == 429:
            raise Refused(ErrorKind.RATE_LIMITED, "too many requests; try again later")
        if status in (502, 503, 504) or status == 0:
            raise ServerLost(f"{self._url} answers {status}")
        if status >= 300:
            raise Refused(ErrorKind.SERVER, f"the service answers {status}")
        try:
            text = data.decode("utf-8", "replace")
            return json.loads(text.replace(self._key(), "[key]") if self._key() else text)
        except ValueError:
            raise Refused(ErrorKind.SERVER, "the service's reply is no JSON") from None

    def _key(self) -> str:
        return os.environ.get(self._kind.key, "") if self._kind.key else ""
