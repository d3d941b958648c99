"""The HTTP client of inference servers: deadlines for whole exchanges, and validated answers.

Answers are limited in size while they stream, after decompression, and the deadline covers the whole
exchange. Redirects are not followed, so that a key stays with its host; servers on this machine are reached
without a proxy.

Transient failures (no connection, 429, 5xx, broken HTTP) are retried by ``tenacity``: back-off with full
jitter, or the server's ``Retry-After``. A server's mistake is a :class:`ServerFault`, which ends no episode
and is not trained on.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from model.json_file import parse_json
from rollouts.engine.address import is_loopback, shown
from rollouts.faults import Lost, MachineFault

LOG = logging.getLogger(__name__)
MIB = 2**20
_TOLD_S = 2.0  # a server unreachable for so long is reported, once until it answers
_CONNECTIONS = 32  # per client: httpx scans all connections for every request
_CONNECT_S = 10.0
_MAY_PASS = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_ERROR_BYTES = 2**16
_SHOWN = 500  # characters of a server's text in an error
_Model = TypeVar("_Model", bound=BaseModel)


class ServerFault(MachineFault):
    """The server is at fault, not the policy: the request is repeated, or the run ends."""


class EngineGone(ServerFault, Lost):
    """The server is unreachable, or is no longer the one that got the weights."""


class BadAnswer(ServerFault, ValueError):
    """An unusable answer; the text names the problem, the field and the fix."""


class ServerRefused(ServerFault, ValueError):
    """A server answered with an error. ``status``: its code; ``said``: its text, safe to show."""

    def __init__(self, text: str, status: int = 0, said: str = "", retry_after: float | None = None) -> None:
        super().__init__(text)
        self.status, self.said, self.retry_after = status, said, retry_after


class NoConnection(ServerFault):
    """The server was not reached, or disconnected before it answered."""


class _BrokenHttp(BadAnswer):
    """The answer is not HTTP; may be transient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request: a POST with ``body`` as JSON, or with ``query`` alone; ``get`` makes it a GET."""

    path: str
    body: dict[str, Any] | None = None
    query: dict[str, str] = field(default_factory=dict)
    get: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to retry. ``unreached(count, seconds)``: whether to give up on a server without any answer."""

    unreached: Callable[[int, float], bool]
    tries: int = 5  # of a request that gets only errors
    pause_s: float = 0.2  # upper bound of the first pause; doubled for each next one
    longest_pause_s: float = 5.0


class Client:
    """Requests to the server at ``url``, with ``key`` as its bearer token. Belongs to one event loop."""

    def __init__(self, url: str, *, key: str | None = None, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url, self._key = url.rstrip("/"), key or ""
        self.sent_again = 0
        self._missed_since: float | None = None
        self._told = False
        self._settings: dict[str, Any] = {
            "headers": {"Accept-Encoding": "gzip"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            "transport": transport,
            "trust_env": not is_loopback(self.url),
            "follow_redirects": False,
            "limits": httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
        }
        self._all: list[httpx.AsyncClient] = []
        self._busy: list[int] = []

    async def ask(self, request: Request, deadline_s: float, *, most: int, patience: Patience) -> bytes:
        """The body, of at most ``most`` bytes, of an answer with status 200 to 299."""
        what = f"{self.url}{request.path}"
        last: list[str] = []
        retrying = AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            wait=_Pauses(wait_random_exponential(patience.pause_s, patience.longest_pause_s)),
            stop=_Stop(patience),
            before_sleep=lambda state: self._again(state, last),
            sleep=asyncio.sleep,
            reraise=True,
        )
        try:
            async with asyncio.timeout(deadline_s) as clock:
                return await retrying(self._once, request, deadline_s, most)
        except TimeoutError:
            after = f"; last: {last[-1]}" if last else ""
            if clock.expired():
                raise TimeoutError(f"{what}: no answer within {deadline_s:.0f} s{after}") from None
            raise

    async def status(self, path: str, deadline_s: float) -> int | str:
        """The status of a GET of ``path``, or why there is none. Never raises for a server's mistake."""
        try:
            async with asyncio.timeout(deadline_s):
                await self._once(Request(path=path, get=True), deadline_s, MIB)
        except ServerRefused as error:
            return error.status
        except (ServerFault, TimeoutError) as error:
            self._missed(error)
            return str(error) or "no answer"
        return 200

    def text(self, data: bytes | str) -> str:
        """A server's text for an error message: short, printable, without the key."""
        text = data if isinstance(data, str) else data[: 8 * _SHOWN].decode(errors="replace")
        if self._key:
            text = text.replace(self._key, "***")
        return shown_text(text)

    async def close(self) -> None:
        """Close all connections."""
        for client in self._all:
            await client.aclose()
        self._all, self._busy = [], []

    def _again(self, state: RetryCallState, last: list[str]) -> None:
        self.sent_again += 1
        last.append(str(_error(state)))
        self._missed(_error(state))

    def _missed(self, error: BaseException | None) -> None:
        """Report, once, that the server has been unreachable for a while."""
        if not isinstance(error, NoConnection):
            return
        now = time.monotonic()
        self._missed_since = now if self._missed_since is None else self._missed_since
        if not self._told and now - self._missed_since > _TOLD_S:
            self._told = True
            LOG.warning("%s cannot be reached (%s); it is waited for", self.url, self.text(str(error)))

    async def _once(self, request: Request, deadline_s: float, most: int) -> bytes:
        what = f"{self.url}{request.path}"
        status, headers, body = await self._send(what, request, deadline_s, most)
        self._missed_since, self._told = None, False
        if 200 <= status < 300:
            return body
        said = self.text(body)
        if 300 <= status < 400:
            said = f"a redirect to {self.text(shown(headers.get('location', '')))!r}, which is not followed: give the"
            said += " server's own address"
        raise ServerRefused(
            f"{what} answered {status}: {said}", status, said, _retry_after(headers.get("retry-after", ""))
        )

    async def _send(
        self, what: str, request: Request, deadline_s: float, most: int
    ) -> tuple[int, httpx.Headers, bytes]:
        place = next((i for i, busy in enumerate(self._busy) if busy < _CONNECTIONS), len(self._busy))
        if place == len(self._busy):
            self._all.append(make_client(self.url, **self._settings))
            self._busy.append(0)
        client, method = self._all[place], "GET" if request.get else "POST"
        timeout = httpx.Timeout(max(deadline_s, 0.01), connect=min(_CONNECT_S, max(deadline_s, 0.01)))
        asked = client.build_request(method, what, params=request.query, json=request.body, timeout=timeout)
        self._busy[place] += 1
        try:
            response = await client.send(asked, stream=True)
            try:
                return response.status_code, response.headers, await _body(response, most)
            finally:
                await response.aclose()
        except (httpx.ProtocolError, httpx.DecodingError, zlib.error) as error:
            raise _BrokenHttp(f"{what}: not HTTP: {type(error).__name__}: {self.text(str(error))}") from None
        except (httpx.TransportError, OSError) as error:
            raise NoConnection(f"{type(error).__name__}: {self.text(str(error))}") from None
        except _TooMuch as error:
            raise BadAnswer(f"{what}: {error}") from None
        finally:
            self._busy[place] -= 1


class _TooMuch(Exception):
    """An answer is too large, or packed in an unsupported way."""


async def _body(response: httpx.Response, most: int) -> bytes:
    """The unpacked body; _TooMuch beyond ``most`` bytes, zlib.error if truncated."""
    packing = response.headers.get("content-encoding", "").strip().lower()
    if packing not in ("", "identity", "gzip", "x-gzip"):
        raise _TooMuch(f"the answer has Content-Encoding {shown_text(packing)!r}, and only gzip was offered")
    if response.is_stream_consumed:  # a transport in memory
        if len(response.content) > most:
            raise _TooMuch(f"the answer is larger than {most:,} bytes")
        return response.content
    unpack = zlib.decompressobj(31) if "gzip" in packing else None  # 31: gzip's frame
    out = bytearray()
    if response.status_code >= 300:  # an error's page: its beginning suffices
        async for chunk in response.aiter_raw():
            out += chunk if unpack is None else unpack.decompress(chunk, _ERROR_BYTES)
            if len(out) >= _ERROR_BYTES:
                break
        return bytes(out[:_ERROR_BYTES])
    async for chunk in response.aiter_raw():
        out += chunk if unpack is None else unpack.decompress(chunk, most + 1 - len(out))
        if len(out) > most:
            raise _TooMuch(f"the answer is larger than {most:,} bytes, more than what was asked for can take")
        if unpack is not None and unpack.unused_data:
            raise zlib.error("bytes after the end of the packed answer")
    if unpack is not None and not unpack.eof and response.status_code != 204:
        raise zlib.error("the packed answer is cut off")
    return bytes(out)


def make_client(url: str, **settings: Any) -> httpx.AsyncClient:
    """An httpx client for ``url``; ValueError in one line if the environment's proxies are unusable."""
    try:
        return httpx.AsyncClient(**settings)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        what = "the proxy speaks SOCKS, and the package socksio is not installed" if "socksio" in str(error) else error
        raise ValueError(
            f"{shown(url)} cannot be reached through the environment's proxy (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY):"
            f" {shown_text(shown(str(what)))}: pip install socksio, correct the variable, or list the host in NO_PROXY"
        ) from None


def parse(body: bytes, what: str, quote: Callable[[bytes], str]) -> dict[str, Any]:
    """``body`` as a JSON object; BadAnswer for anything else, repeated keys, or NaN."""
    try:
        tree = parse_json(body.decode("utf-8"))
    except ValueError as error:
        reason = shown_text(str(error))[:200]
        raise BadAnswer(f"{what} did not answer with a JSON object ({reason}): {quote(body)[:200]!r}") from None
    if not isinstance(tree, dict):
        raise BadAnswer(f"{what} did not answer with a JSON object: {quote(body)[:200]!r}")
    return tree


def check(kind: type[_Model], tree: dict[str, Any], what: str) -> _Model:
    """``tree`` as ``kind``; BadAnswer names ``what`` was asked and the wrong fields."""
    if tree.get("error"):
        raise BadAnswer(f"{what} answered with an error: {shown_text(str(tree['error']))[:_SHOWN]}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        wrong = [
            f"{shown_text('.'.join(map(str, one['loc'])))}: {one['msg']}, not {shown_text(repr(one['input']))[:80]}"
            for one in error.errors(include_url=False)[:3]
        ]
        raise BadAnswer(f"{what}: the answer's field {'; '.join(wrong)}") from None


def shown_text(text: str) -> str:
    """``text`` on one line, truncated, without control characters, terminal escapes and lone surrogates."""
    text = " ".join(text[: 4 * _SHOWN].split())[:_SHOWN]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class _Pauses:
    """tenacity's wait: the server's ``Retry-After``, else ``otherwise``; limited by the caller's deadline."""

    def __init__(self, otherwise: Callable[[RetryCallState], float]) -> None:
        self._otherwise = otherwise

    def __call__(self, state: RetryCallState) -> float:
        asked = getattr(_error(state), "retry_after", None)
        return self._otherwise(state) if asked is None else asked


class _Stop:
    """tenacity's stop: after so many answers, or when ``patience`` with an unreachable server ends."""

    def __init__(self, patience: Patience) -> None:
        self._patience, self._answers, self._failures, self._since = patience, 0, 0, time.monotonic()

    def __call__(self, state: RetryCallState) -> bool:
        if isinstance(_error(state), NoConnection):
            self._failures += 1
            return self._patience.unreached(self._failures, time.monotonic() - self._since)
        self._answers, self._since = self._answers + 1, time.monotonic()
        return self._answers >= self._patience.tries


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome else None


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, NoConnection | _BrokenHttp) or (
        isinstance(error, ServerRefused) and error.status in _MAY_PASS
    )


def _retry_after(value: str) -> float | None:
    """Seconds of a ``Retry-After`` header, given as a number or a date; None if it is neither."""
    text = value.strip()[:64]
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
