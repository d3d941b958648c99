"""Access to the gateway: hosts, origins and a key, checked before anything else.

A page in a browser on this machine can reach every port on loopback. Its requests carry an ``Origin`` or
``Sec-Fetch-Site``, or, after DNS rebinding, the page's name as ``Host``; all three are refused unless
allowed.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rollouts.gateway.openai_errors import refusal
from rollouts.gateway.request_json import short

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::([0-9]{0,5}))?", re.IGNORECASE)
_HEAD_BYTES = 32_768  # of all headers
_ONCE = ("x-parl-episode", "x-parl-task", "content-encoding", "sec-fetch-site")  # repeated values would be ambiguous
_OPEN = "/health"  # needs no key: it only reports that the process is alive


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Allowed ``hosts`` besides loopback, ``origins`` of pages (scheme://host:port), and a bearer ``key``."""

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    key: str | None = None

    def middleware(self) -> list[Middleware]:
        """Outermost first."""
        shared = [
            Middleware(
                CORSMiddleware,
                allow_origins=self.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["x-parl-episode", "retry-after"],
            )
        ]
        return [Middleware(Doorway, access=self), *(shared if self.origins else []), Middleware(Lock, key=self.key)]


class Doorway:
    """Refuses foreign hosts (421) and origins (403), and answers requests cut off at shutdown (503)."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self.app = app
        self._hosts = {host.lower().rstrip(".").strip("[]") for host in access.hosts}
        self._origins = {origin.lower() for origin in access.origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = False

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await (self._refused(scope) or self.app)(scope, receive, noted)
        except asyncio.CancelledError:  # shutdown after the grace period
            if not began:
                await refusal(503, None, "the gateway is stopping", headers={"connection": "close"})(
                    scope, receive, send
                )

    def _refused(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > _HEAD_BYTES:
            return refusal(431, None, f"the headers have more than {_HEAD_BYTES} bytes")
        if "content-length" in headers and "transfer-encoding" in headers:  # proxies interpret such a pair differently
            text = "content-length: not beside transfer-encoding"
            return refusal(400, "content-length", text, headers={"connection": "close"})
        if twice := next((name for name in _ONCE if len(headers.getlist(name)) > 1), None):
            return refusal(400, twice, f"{twice}: is given twice")
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._known(hosts[0], scope):
            advice = "start parl gateway with --allow-host NAME if that is its name"
            return refusal(421, "host", f"host: {short(', '.join(hosts))} is not this server; {advice}")
        origins = [origin.lower() for origin in headers.getlist("origin")]
        if any(origin not in self._origins for origin in origins) or len(origins) > 1:
            advice = "start parl gateway with --allow-origin ORIGIN if it may ask"
            return refusal(403, "origin", f"origin: {short(', '.join(origins))} may not ask; {advice}")
        if not origins and headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin"):
            return refusal(403, "sec-fetch-site", "sec-fetch-site: pages of other sites may not ask")
        return None

    def _known(self, header: str, scope: Scope) -> bool:
        found = _HOST.fullmatch(header)
        if found is None or int(found[2] or 0) > 65_535:
            return False
        name = found[1].lower().strip("[]").removesuffix(".")
        server = str((scope.get("server") or ("",))[0]).lower()  # the connection's local address
        own = name == server and (_is_address(name) or "." not in name)
        return own or is_loopback(name) or name in self._hosts


class Lock:
    """Refuses requests without the key (401), except preflights and ``/health``."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.app = app
        self._wanted = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and self._wanted is not None and scope["path"] != _OPEN:
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if len(given) != 1 or not self._fits(given[0]):
                text = "Incorrect API key provided: send Authorization: Bearer KEY" if given else "No API key provided"
                answer = refusal(401, None, text, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)

    def _fits(self, header: bytes) -> bool:
        scheme, _, given = header.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._wanted or b"")


def is_loopback(name: str) -> bool:
    """Whether ``name`` is this machine, in its usual spellings only."""
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def wrong_origins(origins: Iterable[str]) -> list[str]:
    """Those that are not one site's scheme://host[:port], including ``*`` and ``null``."""
    return [origin for origin in origins if not re.fullmatch(r"https?://[A-Za-z0-9.\-\[\]:]+", origin)]


def wrong_hosts(hosts: Iterable[str]) -> list[str]:
    """Those that are not the name or address of one host, or have a port."""
    return [host for host in hosts if not (found := _HOST.fullmatch(host)) or found[2] is not None]
