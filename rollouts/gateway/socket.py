"""uvicorn for the gateway: closes connections that send no request, or read no answer.

uvicorn alone waits for ever for the rest of a request's head, an unwanted body, or a client that stops
reading.
"""

from __future__ import annotations

import asyncio
import json
import resource
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_SPARE_FILES = 64  # descriptors other than connections
_CONNECTIONS = 2048


class TimelyProtocol(H11Protocol):
    """HTTP/1.1 with deadlines: ``head_s`` for a request's head, ``stall_s`` without a byte read by the
    client.
    """

    head_s: float
    stall_s: float
    connections_at_most: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close a connection beyond the limit at once."""
        super().connection_made(transport)
        self._arm(self.head_s)
        if len(self.connections) > self.connections_at_most:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """The head's deadline ends with the head."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused:
            self._disarm()

    def on_response_complete(self) -> None:
        """Start the next head's deadline."""
        self._arm(self.head_s)
        super().on_response_complete()
        if self.cycle is not None and not self.cycle.response_complete:  # the next request has already arrived
            self._disarm()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._arm(self.stall_s)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        if self.cycle is not None and not self.cycle.response_complete:
            self._disarm()
        else:
            self._arm(self.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines."""
        super().connection_lost(exc)
        self._disarm()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP in OpenAI's form, unless an answer has begun."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
            return
        error = {"message": f"not a request: {msg}", "type": "invalid_request_error", "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def server_config(app: ASGIApp, *, head_s: float = 15.0, stall_s: float = 30.0, finish_s: int = 5) -> uvicorn.Config:
    """uvicorn's settings for ``app``: no trusted proxies, no WebSockets, as many connections as files.

    At shutdown running requests have ``finish_s``; records are stored after them, before a scheduler's
    SIGKILL.
    """
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    most = max(8, min(_CONNECTIONS, files - _SPARE_FILES)) if files > 0 else _CONNECTIONS
    limits = {"head_s": head_s, "stall_s": stall_s, "connections_at_most": most}
    protocol = type("TimelyProtocol", (TimelyProtocol,), limits)
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        proxy_headers=False,
        server_header=False,
        access_log=False,
        log_level="error",
        timeout_graceful_shutdown=finish_s,
    )
