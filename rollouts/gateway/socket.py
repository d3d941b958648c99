"""uvicorn as the gateway runs it: connections that send no request, or read no answer, are closed.

uvicorn itself waits for ever for the rest of a request's head, for the rest of a body that nobody wants, and for a
client that stops reading.
"""

from __future__ import annotations

import asyncio
import json
import resource
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_SPARE_FILES = 64  # descriptors for what is not a connection
_CONNECTIONS = 2048


class TimelyProtocol(H11Protocol):
    """HTTP/1.1 with deadlines: ``head_s`` from the connection's start or the last answer's end to the end of the next
    request's head, ``stall_s`` without a byte taken off our hands."""

    head_s: float
    stall_s: float
    connections_at_most: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection beyond the most is closed at once."""
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
        """The next head's deadline begins."""
        self._arm(self.head_s)
        super().on_response_complete()
        if self.cycle is not None and not self.cycle.response_complete:  # the next request had come in already
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
        """No deadline any more."""
        super().connection_lost(exc)
        self._disarm()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is refused in OpenAI's form; not where an answer has begun."""
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
    """uvicorn's settings for ``app``: no proxy is trusted, no WebSockets, as many connections as there are files.

    When it is to stop, requests under way have ``finish_s``: what is recorded is stored after them, and a scheduler
    that asked it to stop soon kills it.
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
