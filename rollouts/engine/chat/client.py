"""A client of OpenAI's chat completions: requests with deadlines and retries, and their usage.

Transient failures (a full queue, a restart, a broken connection) are retried a few times. Permanent ones
(nobody listens, key or model refused, never an answer) raise :class:`ServerGone`, kept in
``ChatServer.gone``, so that the caller can stop instead of failing episode by episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel

from rollouts.engine.address import check_address, check_key
from rollouts.engine.client import MIB, BadAnswer, Client, NoConnection, Patience, Request, ServerRefused, check, parse
from rollouts.engine.schemas import ChatAnswer, ChatModels, TokenUsage

KEY = "OPENAI_API_KEY"
_REFUSED = {401: f"set {KEY}", 403: f"set {KEY}", 404: "check the address and --model-name"}
_TRIES = 5
_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0
_MOST = 16 * MIB  # bytes of an answer; lists of models may be long
_CURE = f"put its key into the variable {KEY}"
_Answer = TypeVar("_Answer", bound=BaseModel)


class ServerGone(RuntimeError):
    """The server answers no request of this kind; the text names its address and the fix."""


class ContextFull(ValueError):
    """The conversation exceeds the context of the server's model."""


@dataclass(slots=True)
class Usage:
    """Usage of answers in the server's tokens; ``unreported`` of its ``requests`` came without a count."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0

    def add(self, reported: TokenUsage | None) -> None:
        """Add the usage that one answer reports."""
        self.requests += 1
        if reported is None or reported.prompt_tokens is None or reported.completion_tokens is None:
            self.unreported += 1
            return
        self.prompt_tokens += reported.prompt_tokens
        self.completion_tokens += reported.completion_tokens


def api_root(url: str) -> str:
    """``url`` as the API's root: with ``/v1`` if it has no path. ValueError if it is not a URL."""
    check_address(url, _CURE)
    parsed = httpx.URL(url.rstrip("/"))
    return str(parsed) if parsed.path.strip("/") else f"{str(parsed).rstrip('/')}/v1"


class ChatServer:
    """Client of the API at ``url`` (``api_root``). Belongs to one event loop; close it after use."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        pause_s: float = _PAUSE_S,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """ValueError if ``url`` is not an address, or the key may not be sent to it."""
        self.url = api_root(url)
        check_key(self.url, api_key, KEY)
        self.gone = ""
        self._answered = 0
        self._client = Client(self.url, key=api_key, transport=transport)
        self._patience = Patience(
            unreached=lambda failures, _: failures >= _TRIES or not self._answered,
            tries=_TRIES,
            pause_s=pause_s,
            longest_pause_s=_LONGEST_PAUSE_S,
        )

    async def models(self, deadline_s: float) -> list[str]:
        """Names of its models. Raises ServerGone, TimeoutError."""
        answer = await self._call(ChatModels, Request(path="/models", get=True), deadline_s)
        return [row.id for row in answer.data]

    async def complete(self, body: dict[str, Any], deadline_s: float) -> ChatAnswer:
        """The answer to ``body``. Raises ServerGone, TimeoutError, ContextFull, ServerRefused, BadAnswer."""
        return await self._call(ChatAnswer, Request(path="/chat/completions", body=body), deadline_s)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def _call(self, kind: type[_Answer], request: Request, deadline_s: float) -> _Answer:
        if self.gone:
            raise ServerGone(self.gone)
        what = f"{self.url}{request.path}"
        try:
            data = await self._client.ask(request, deadline_s, most=_MOST, patience=self._patience)
            answer = check(kind, parse(data, what, self._client.text), what)
        except NoConnection as error:
            raise self._give_up(
                f"{self.url} cannot be reached ({error}): start the server, or correct the address"
            ) from None
        except ServerRefused as error:
            raise self._refusal(error) from None
        except BadAnswer as error:
            raise self._bad(error) from None
        self._answered += 1
        return answer

    def _refusal(self, error: ServerRefused) -> Exception:
        if error.status in (400, 413, 422) and ("context_length" in error.said or "context length" in error.said):
            return ContextFull(str(error))
        return self._give_up(f"{error}: {_REFUSED[error.status]}") if error.status in _REFUSED else self._bad(error)

    def _bad(self, error: Exception) -> Exception:
        """An error of this request, or of the server if it never answered any."""
        return error if self._answered else self._give_up(str(error))

    def _give_up(self, said: str) -> ServerGone:
        self.gone = said
        return ServerGone(self.gone)
