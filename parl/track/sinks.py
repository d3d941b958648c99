"""Optional outputs of a run's numbers: TensorBoard files and a Prometheus endpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from parl.config.schema import TrackingConfig
from parl.errors import UserError
from parl.machine.shell_variables import wandb_mode

_NEEDS = {"tensorboard": "tensorboard", "prometheus_port": "prometheus-client"}


class Sink(Protocol):
    """Takes the numbers of a step, named ``KIND/NAME``."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take the finite numbers of ``step``."""
        ...

    def close(self) -> None:
        """No more numbers will come."""
        ...


def check_sinks(tracking: TrackingConfig) -> None:
    """UserError if a configured library is not installed, or WANDB_MODE is invalid."""
    wandb_mode(tracking.wandb)
    for key, library in _NEEDS.items():
        if getattr(tracking, key) and importlib.util.find_spec(library.replace("-", "_")) is None:
            raise UserError(
                f"tracking.{key}={getattr(tracking, key)} needs {library}: pip install {library}, or leave it off"
            )


def make_sinks(tracking: TrackingConfig, run_dir: Path) -> list[Sink]:
    """The configured sinks; UserError if one cannot start."""
    check_sinks(tracking)
    sinks: list[Sink] = []
    if tracking.tensorboard:
        sinks.append(TensorBoard(run_dir / "tensorboard"))
    if tracking.prometheus_port:
        sinks.append(Prometheus(tracking.prometheus_port, run_dir.name))
    return sinks


class TensorBoard:
    """Event files in ``folder``: ``tensorboard --logdir runs``. A resumed run writes repeated steps again."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One scalar per number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flush."""
        self._writer.close()


class Prometheus:
    """Gauges ``parl{run=..., name="train/reward/total"}`` of the newest step at ``127.0.0.1:port/metrics``.

    The numbers' names are a label, since Prometheus forbids their slashes in names. Runs of one process share
    the endpoint.
    """

    _servers: dict[int, tuple[Any, Any]] = {}  # noqa: RUF012 - one endpoint for the process; port -> server, gauges

    def __init__(self, port: int, run: str) -> None:
        from prometheus_client import CollectorRegistry, Gauge, start_http_server  # pyright: ignore

        if port not in self._servers:
            registry = CollectorRegistry()
            gauges = Gauge("parl", "newest value of a run's number", ["run", "name"], registry=registry)
            try:
                server = start_http_server(port, addr="127.0.0.1", registry=registry)
            except OSError as error:
                raise UserError(f"tracking.prometheus_port={port} cannot be opened ({error}): choose another") from None
            self._servers[port] = (server, gauges)
        self._gauges, self._run = self._servers[port][1], run

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Set the gauges."""
        self._gauges.labels(run=self._run, name="step").set(step)
        for name, value in values.items():
            self._gauges.labels(run=self._run, name=name).set(value)

    def close(self) -> None:
        """Keep the endpoint while the process lives: a scraper may come late."""
