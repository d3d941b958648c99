"""An HTTP server for the world's application: uvicorn on a free local port, in a thread of this process."""

from __future__ import annotations

import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette

_START_S = 20.0
_STOP_S = 10.0
_KEEP_S = 600


class SocketServer:
    """Serves ``app`` on 127.0.0.1 at ``url`` from construction until :meth:`close`."""

    def __init__(self, app: Starlette) -> None:
        """Start serving; RuntimeError if the server is not up within 20 seconds."""
        # asyncio disables Nagle's algorithm only if the protocol is named; with it a call takes 40 ms
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        # clients close idle connections, after seconds: a server that did so too would meet their next request
        kept = {"timeout_keep_alive": _KEEP_S, "access_log": False, "lifespan": "off"}
        settings = uvicorn.Config(app, log_level="error", **kept)
        self._server = uvicorn.Server(settings)
        target = {"sockets": [self._socket]}
        self._thread = threading.Thread(target=self._server.run, kwargs=target, name="world-server", daemon=True)
        self._thread.start()
        give_up = time.monotonic() + _START_S
        while not self._server.started:
            if time.monotonic() > give_up or not self._thread.is_alive():
                self.close()
                raise RuntimeError(f"the world's tool server did not start at {self.url}")
            time.sleep(0.005)

    def close(self) -> None:
        """Stop serving; waits up to 10 seconds for open requests. Safe to call twice."""
        self._server.should_exit = True
        self._thread.join(_STOP_S)
        self._socket.close()
