"""Each of our listeners alone: on loopback, whatever the host's name resolves to."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attacks.base import Attack, NotHere


def _listening() -> set[tuple[str, int]]:
    """Addresses that this process listens on."""
    import psutil

    return {
        (entry.laddr.ip, entry.laddr.port)
        for entry in psutil.Process().net_connections(kind="inet")
        if entry.status == psutil.CONN_LISTEN
    }


@contextmanager
def _only_loopback_is_added() -> Iterator[None]:
    before = _listening()
    yield
    added = _listening() - before
    assert added, "nothing listens: nothing was seen"
    assert all(address.removeprefix("::ffff:").startswith("127.") for address, _ in added), added


def _metrics(folder: Path) -> None:
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise NotHere("prometheus-client is not installed") from None
    from parl.learn.process import free_port
    from parl.track.sinks import Prometheus

    with _only_loopback_is_added():
        Prometheus(free_port(), "run")


def _world(folder: Path) -> None:
    from starlette.applications import Starlette

    from envs.world.site.server import SocketServer

    with _only_loopback_is_added():
        server = SocketServer(Starlette())
    server.close()


def _rendezvous(folder: Path) -> None:
    """Two ranks find each other through a server on loopback; one rank needs none."""
    from parl.learn.process import _meeting, free_port

    before, port = _listening(), free_port()
    assert _meeting(0, 1, port) is not None and _listening() == before
    with _only_loopback_is_added():
        first = _meeting(0, 2, port)
        second = threading.Thread(target=lambda: _meeting(1, 2, port).set("from", "rank 1"))
        second.start()
        assert first.get("from") == b"rank 1"
        second.join(10)


def _gateway_default(folder: Path) -> None:
    from parl.cli.policies import gateway

    assert inspect.signature(gateway).parameters["host"].default == "127.0.0.1"


def cases() -> list[Attack]:
    """One for each."""
    tried = {
        "tracking.prometheus_port": _metrics,
        "the world's tools on a socket": _world,
        "the learner ranks' rendezvous": _rendezvous,
        "the gateway without --host": _gateway_default,
    }
    return [Attack(area="listeners", name=name, run=run) for name, run in tried.items()]
