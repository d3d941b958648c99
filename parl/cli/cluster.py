"""``parl cluster``: the machines of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from parl.cli.errors import reported
from parl.errors import MachineError, UserError
from parl.shown.terminal import echo

if TYPE_CHECKING:
    from parl.machine.nodes.check import NodeFacts

_WAIT_S, _PAUSE_S = 300.0, 2.0
app = typer.Typer(no_args_is_help=True, help="The machines of a run: check.")


@app.callback()
def _group() -> None:
    """The machines of a run."""


@app.command()
def check(
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="A running Ray's HOST:PORT, or auto.")],
    config: Annotated[
        Path | None, typer.Option("--config", help="Also check ports, labels and files of this configuration.")
    ] = None,
    nodes: Annotated[
        int, typer.Option("--nodes", min=1, help="Wait until there are so many, at most five minutes.")
    ] = 1,
) -> None:
    """Say within a minute whether the machines of a Ray cluster will do. Run it on one of them.

    Exit status 1 if they will not.
    """
    with reported():
        from parl.machine.nodes.check import ask, data_paths, table, verdict
        from parl.machine.nodes.config import ClusterConfig
        from parl.machine.shell_variables import check_cluster, join

        cluster, data = ClusterConfig(), ()
        if config is not None:
            from parl.config.runs import configuration

            resolved = configuration(config, [])
            cluster, data = resolved.cluster, data_paths(resolved.envs.config)
        join(address)
        found = _there(nodes, lambda: (check_cluster(), ask(address, cluster.port_range, data))[1])
        table(found, echo)
        judged = verdict(found, cluster, data)
        for note in judged.notes:
            echo(f"note: {note}")
        for problem in judged.problems:
            echo(f"problem: {problem}")
        count = f"{len(found)} node{'s' if len(found) > 1 else ''}"
        if judged.problems:
            raise MachineError(f"{count}: will not do, {len(judged.problems)} to be mended")
        echo(f"{count}: will do")


def _there(count: int, look: Callable[[], tuple[NodeFacts, ...]]) -> tuple[NodeFacts, ...]:
    """The nodes, once there are ``count``; MachineError if there are fewer after some minutes."""
    from parl.machine.nodes.check import ask

    began = time.monotonic()
    while True:
        found: tuple[NodeFacts, ...] = ()
        try:
            found = look()
        except UserError:
            if count == 1 or time.monotonic() - began > _WAIT_S:
                raise
        if len(found) >= count:
            return found
        if time.monotonic() - began > _WAIT_S:
            raise MachineError(f"after {_WAIT_S:g} s there are {len(found)} of {count} nodes: see the others' logs")
        ask.cache_clear()
        time.sleep(_PAUSE_S)
