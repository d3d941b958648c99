"""A server of OpenAI's chat completions, whoever runs it: requests with deadlines and retries, and what they used.

What may pass - a full queue, a restart, a connection that breaks - is tried again a few times. What will not pass on
any request (nobody listens, the key or the model is refused, nothing was ever answered) is :class:`ServerGone`, kept in
``ChatServer.gone``, so that its caller can stop instead of failing episode by episode.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import httpx

_BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_REFUSED = {401: "set OPENAI_API_KEY", 403: "set OPENAI_API_KEY", 404: "check the address and --model-name"}
_TRIES = 5
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0  # the longest also bounds what a Retry-After may ask for
_CONNECT_S = 10.0
_CONNECTIONS = 256


class ServerGone(RuntimeError):
    """The server answers no request of this kind; the text names its address and what to do."""


class ContextFull(ValueError):
    """The conversation is longer than the server's model can read."""


@dataclass(slots=True)
class Usage:
    """What answers used, in the server's tokens; ``unreported`` of its ``requests`` came without a count."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0

    def add(self, reported: Any) -> None:
        """Count one answer whose field ``usage`` is ``reported``."""
        counts = reported if isinstance(reported, dict) else {}
        numbers = [counts.get(name) for name in ("prompt_tokens", "completion_tokens")]
        known = all(isinstance(number, int) for number in numbers)
        self.requests += 1
        self.unreported += not known
        if known:
            self.prompt_tokens += counts["prompt_tokens"]
            self.completion_tokens += counts["completion_tokens"]


def api_root(url: str) -> str:
    """``url`` as clients of the API take it: with ``/v1`` where it names a host only. ValueError if it is no URL."""
    parsed = httpx.URL(url.rstrip("/"))
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{url} is not an address like http://127.0.0.1:8000/v1")
    return str(parsed) if parsed.path.strip("/") else f"{str(parsed).rstrip('/')}/v1"


class ChatServer:
    """Client of the API at ``url`` (``api_root``). Belongs to one event loop; close it when done."""

    def __init__(self, url: str, *, api_key: str | None = None, pause_s: float = _PAUSE_S) -> None:
        self.url = api_root(url)
        self.gone = ""
        self._answered = 0
        self._pause_s = pause_s
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
        self._client = httpx.AsyncClient(headers=headers, limits=limits)

    async def models(self, deadline_s: float) -> list[str]:
        """Names of the models that it serves. Raises ServerGone, TimeoutError."""
        tree = await self._call("GET", "/models", None, deadline_s)
        rows = tree.get("data")
        return [str(row["id"]) for row in rows if isinstance(row, dict) and "id" in row] if rows else []

    async def complete(self, body: dict[str, Any], deadline_s: float) -> dict[str, Any]:
        """The answer to ``body``. Raises ServerGone, ContextFull, TimeoutError, ValueError (refused for what it is)."""
        return await self._call("POST", "/chat/completions", body, deadline_s)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _call(self, method: str, path: str, body: Any, deadline_s: float) -> dict[str, Any]:
        pause, tries = self._pause_s, 0
        async with asyncio.timeout(deadline_s):
            while True:
                if self.gone:
                    raise ServerGone(self.gone)
                response = await self._send(method, path, body, deadline_s)
                tries += 1
                if isinstance(response, str):
                    if tries >= _TRIES or not self._answered:
                        raise self._give_up(f"cannot be reached ({response}): start the server, or correct the address")
                elif response.status_code < 400:
                    return self._read(path, response)
                elif response.status_code not in _BUSY or tries >= _TRIES:
                    raise self._refusal(path, response)
                await asyncio.sleep(_pause(response, pause))
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _send(self, method: str, path: str, body: Any, deadline_s: float) -> httpx.Response | str:
        timeout = httpx.Timeout(deadline_s, connect=_CONNECT_S)
        try:
            return await self._client.request(method, self.url + path, json=body, timeout=timeout)
        except httpx.TransportError as error:
            return f"{type(error).__name__}: {error}"

    def _read(self, path: str, response: httpx.Response) -> dict[str, Any]:
        try:
            tree = response.json()
        except ValueError:
            tree = None
        if not isinstance(tree, dict):
            raise self._bad(f"{path} did not answer with a JSON object: {response.text[:200]!r}")
        self._answered += 1
        return tree

    def _refusal(self, path: str, response: httpx.Response) -> Exception:
        status, text = response.status_code, response.text[:500]
        if status in (400, 413, 422) and ("context_length" in text or "context length" in text):
            return ContextFull(f"{self.url}: {text}")
        said = f"{path} answered {status}: {text}"
        return self._give_up(f"{said}: {_REFUSED[status]}") if status in _REFUSED else self._bad(said)

    def _bad(self, said: str) -> Exception:
        """An error of this request; of the server where it never gave an answer to any."""
        return ValueError(f"{self.url}{said}") if self._answered else self._give_up(said)

    def _give_up(self, said: str) -> ServerGone:
        self.gone = f"{self.url}{'' if said.startswith('/') else ' '}{said}"
        return ServerGone(self.gone)


def _pause(response: httpx.Response | str, otherwise: float) -> float:
    """Seconds to wait: what the server asks for, where it does so in seconds."""
    asked = "" if isinstance(response, str) else response.headers.get("retry-after", "")
    return min(float(asked), _LONGEST_PAUSE_S) if asked.replace(".", "", 1).isdigit() else otherwise
