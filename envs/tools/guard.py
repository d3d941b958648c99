"""The only way to a URL that a model chose: checked, resolved, checked again, and only then connected to.

Against requests to this machine and its network (SSRF): the name is resolved where the connection is made, all
its addresses are checked, and the connection goes to one of them, so a name that changes its address in
between (DNS rebinding) gains nothing. Redirects are followed here, each checked as the first URL was.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import socket
import ssl
import zlib
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from envs.tools.domains import Domains

PORTS = (80, 443, 8080, 8443)
MOST_REDIRECTS, LONGEST_URL = 5, 2048
_NAME = re.compile(r"(?=.{1,253}$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_LOCAL = ("localhost", "local", "localdomain", "internal", "intranet", "lan", "home", "corp", "arpa", "onion")
# Addresses that lead to IPv4 ones, or to a network's own, by translation.
_TUNNELS = [ipaddress.ip_network(net) for net in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]
_OTHERS = [
    ipaddress.ip_network(net)
    for net in ("192.0.0.0/24", "192.88.99.0/24", "fec0::/10", "5f00::/16", "3fff::/20", "100::/64")
]
_HEADERS = {"User-Agent": "parl", "Accept": "text/html, text/plain, */*;q=0.5", "Accept-Encoding": "gzip, deflate"}
Resolver = Callable[[str, int], Awaitable[list[str]]]


class Refused(ValueError):
    """A URL that must not be opened; the text says why, and may be shown to the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """A page as it came. ``url``: after redirects. ``kind``: its media type. ``cut``: there was more."""

    url: str
    status: int
    kind: str
    charset: str
    data: bytes
    cut: bool


class Guard:
    """Checks and fetches URLs. ``blocked``: domains that must not be opened either.

    ``loopback_ports``: ports of this machine that may be reached all the same, for tests with servers here.
    Bound to the event loop of its first fetch.
    """

    def __init__(
        self,
        *,
        blocked: Collection[str] = (),
        ports: Collection[int] = PORTS,
        loopback_ports: Collection[int] = (),
        resolve: Resolver | None = None,
        certificates: ssl.SSLContext | None = None,
    ) -> None:
        self._blocked, self._ports, self._loopback = Domains(blocked), frozenset(ports), frozenset(loopback_ports)
        self._resolve, self._certificates = resolve or _resolve, certificates
        self._client: httpx.AsyncClient | None = None

    def check(self, url: str) -> httpx.URL:
        """The URL, if its text may be opened; what its host resolves to is checked when it is connected to."""
        if not isinstance(url, str) or not 0 < len(url) <= LONGEST_URL:
            raise Refused(f"a URL has 1 to {LONGEST_URL} characters")
        if any(ord(letter) <= 32 or ord(letter) == 127 or letter in '\\"<>^`{|}' for letter in url):
            raise Refused("a URL has no spaces, control characters, quotes or backslashes")
        try:
            parsed = httpx.URL(url)
            host, port = parsed.raw_host.decode("ascii").lower(), parsed.port
        except (httpx.InvalidURL, ValueError, UnicodeError):
            raise Refused("this is no URL") from None
        if parsed.scheme not in ("http", "https"):
            raise Refused(f"{parsed.scheme or 'no'} scheme: only http and https are opened")
        if parsed.userinfo or "@" in re.split("[/?#]", url.partition("//")[2])[0]:
            raise Refused("a URL must not have a user name or password")
        port = port if port is not None else {"http": 80, "https": 443}[parsed.scheme]
        if port not in self._ports and port not in self._loopback:
            raise Refused(f"port {port} is not opened")
        self._check_host(host, port)
        return parsed.copy_with(fragment=None)

    def _check_host(self, host: str, port: int) -> None:
        address = _address(host)
        if address is not None:
            self._check_address(address, port)
            return
        name = host.removesuffix(".")
        if not _NAME.fullmatch(name):
            raise Refused(f"{host!r} is no host name")
        if name.rpartition(".")[2] in _LOCAL:
            raise Refused(f"{host!r} is a name of a local network")
        if self._blocked.holds(name):
            raise Refused(f"{host!r} is blocked for this task")

    def _check_address(self, address: str, port: int) -> None:
        found = ipaddress.ip_address(address)
        mapped = getattr(found, "ipv4_mapped", None)
        if found.is_loopback and port in self._loopback:
            return
        if mapped is not None:
            raise Refused("an IPv4 address inside an IPv6 one is not opened")
        inside = any(found.version == net.version and found in net for net in (*_TUNNELS, *_OTHERS))
        if inside or not found.is_global or found.is_multicast or found.is_reserved:
            raise Refused(f"{address} is not an address of the public internet")

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of ``host``, every one of them checked; :class:`Refused` if one may not be opened."""
        if (literal := _address(host)) is not None:
            found = [literal]
        else:
            try:
                found = await self._resolve(host, port)
            except OSError as error:
                raise Refused(f"{host!r} cannot be resolved") from error
        if not found:
            raise Refused(f"{host!r} has no address")
        for address in found:
            if "%" in address:
                raise Refused(f"{host!r} has an address of one network only")
            self._check_address(address, port)
        return found

    async def fetch(
        self, url: str, *, deadline_s: float, most_bytes: int = 1 << 21, most_decoded: int = 1 << 23
    ) -> Fetched:
        """Open ``url`` and its redirects within ``deadline_s``; at most so many bytes before and after unpacking.

        :class:`Refused`, TimeoutError, or httpx.TransportError for a server that does not speak HTTP.
        """
        async with asyncio.timeout(deadline_s):
            asked = self.check(url)
            for _ in range(MOST_REDIRECTS + 1):
                request = self._http().build_request("GET", asked, headers=_HEADERS)
                reply = await self._http().send(request, stream=True)
                try:
                    if not (reply.is_redirect and "location" in reply.headers):
                        return await _read(reply, most_bytes, most_decoded)
                    asked = self.check(_joined(asked, reply.headers["location"]))
                finally:
                    await reply.aclose()
            raise Refused(f"more than {MOST_REDIRECTS} redirects")

    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client:
            await client.aclose()

    def _http(self) -> httpx.AsyncClient:
        if self._client is None:
            transport = _Transport(self, self._certificates)
            self._client = httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)
        self._client.cookies.clear()  # what one page sets, another must not send
        return self._client


def check_url(url: str) -> str:
    """The URL as it may be opened; :class:`Refused` otherwise."""
    return str(Guard().check(url))


async def fetch(url: str, *, deadline_s: float, **given: Any) -> Fetched:
    """Open one URL with a guard of its own; see :meth:`Guard.fetch`."""
    guard = Guard()
    try:
        return await guard.fetch(url, deadline_s=deadline_s, **given)
    finally:
        await guard.close()


@functools.cache
def _certificates() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)


class _Transport(httpx.AsyncHTTPTransport):
    """httpx's own, whose connections are made by the guard. Host header and TLS name stay those of the URL."""

    def __init__(self, guard: Guard, certificates: ssl.SSLContext | None) -> None:
        context = certificates or _certificates()
        super().__init__(verify=context, trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context, max_connections=64, keepalive_expiry=10.0, network_backend=_Backend(guard)
        )


class _Backend(httpcore.AsyncNetworkBackend):
    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._inner: Any = httpcore.AnyIOBackend()

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None, socket_options=None
    ) -> httpcore.AsyncNetworkStream:
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await self._guard.addresses(host, port):
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed

    async def connect_unix_socket(self, path: str, timeout=None, socket_options=None) -> httpcore.AsyncNetworkStream:
        raise Refused("a unix socket is not opened")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _address(host: str) -> str | None:
    """The address that ``host`` is, None for a name; :class:`Refused` for forms that libraries read differently."""
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare:
        if "%" in bare:
            raise Refused("an address with a zone is not opened")
        try:
            return str(ipaddress.IPv6Address(bare))
        except ValueError:
            raise Refused(f"{host!r} is no host name") from None
    last = bare.removesuffix(".").rpartition(".")[2]
    if not re.fullmatch(r"\d+|0x[0-9a-f]*", last, re.IGNORECASE | re.ASCII):
        return None
    try:
        return str(ipaddress.IPv4Address(bare))
    except ValueError:
        raise Refused(f"{host!r} is an unusual form of an address") from None


def _joined(base: httpx.URL, location: str) -> str:
    try:
        return str(base.join(location))
    except (httpx.InvalidURL, ValueError, UnicodeError):
        raise Refused("a redirect that leads to no URL") from None


async def _resolve(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


async def _read(reply: httpx.Response, most: int, most_decoded: int) -> Fetched:
    """The body, unpacked here, so that it is cut before it is large."""
    unpack, data, wire, cut = _unpacker(reply.headers.get("content-encoding", "")), bytearray(), 0, False
    async for raw in reply.aiter_raw():
        try:
            data += unpack(raw[: most - wire], most_decoded - len(data) + 1)
        except zlib.error:
            cut = True
            break
        wire += len(raw)
        if cut := wire > most or len(data) > most_decoded:
            break
    kind = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Fetched(
        url=str(reply.url),
        status=reply.status_code,
        kind=kind,
        charset=reply.charset_encoding or "",
        data=bytes(data[:most_decoded]),
        cut=cut,
    )


def _unpacker(encoding: str) -> Callable[[bytes, int], bytes]:
    """A function of (next bytes, most bytes out) for a ``Content-Encoding``; zlib.error for damaged data."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return lambda raw, room: raw
    if encoding in ("gzip", "x-gzip"):
        return zlib.decompressobj(31).decompress
    if encoding == "deflate":  # with zlib's header, as the standard says, or without, as some servers send
        made: list[Any] = []

        def inflate(raw: bytes, room: int) -> bytes:
            made.extend([] if made or not raw else [zlib.decompressobj(15 if raw[0] & 15 == 8 else -15)])
            return made[0].decompress(raw, room) if made else b""

        return inflate
    raise Refused(f"a page in the encoding {encoding!r}")
