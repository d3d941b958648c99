"""Ray: starting, stopping, and the actors of a run.

A one-machine run listens on loopback only, with a token of its own, and keeps its files in a private folder.
Every wait has a deadline. The learner's or the driver's death ends the run with the first traceback; engines
and rollout workers are restarted by their owner (``parl.collect.collector``).
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from parl.errors import MachineError
from parl.machine.ending import kept_handlers
from parl.machine.nodes.check import ask, refuse, verdict
from parl.machine.nodes.code import own_modules, pack
from parl.machine.nodes.config import ClusterConfig, Role
from parl.machine.nodes.place import LOOPBACK, Cluster, joined, options
from parl.machine.processes import no_leftovers
from parl.machine.session_folder import session_folder
from parl.machine.shell_variables import check_cluster, cluster_address, join, tidy
from parl.machine.watch import SILENT_S, WATCH, kill_quietly
from parl.own_packages import prepare_worker, worker_environment
from parl.shown.terminal import echo
from rollouts.beat import GROUP, Beating

_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # idle processes that no actor can use here
    "RAY_verbose_spill_logs": "0",
    "RAY_worker_niceness": "0",  # otherwise every other process has priority
    "DS_ACCELERATOR": "cpu",
}
_LEAST_STORE_BYTES = 512 * 2**20
_PEERS_S = 5.0  # time until a lost rank's end is known, after its peers failed
_STORE_BYTES = 2 * 2**30  # at most; memory is taken when it is used
_cluster = ClusterConfig()
_data: tuple[str, ...] = ()  # files that rollout workers read


def use(cluster: ClusterConfig, data: tuple[str, ...] = ()) -> None:
    """Run on the machines of ``cluster`` from here on; ``data``: files that rollout workers read.

    UserError if RAY_ADDRESS names another cluster.
    """
    global _cluster, _data
    _cluster, _data = cluster, data
    if cluster.address is not None:
        join(cluster.address)


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray instance on this machine (or the cluster of RAY_ADDRESS) inside the block."""
    running = sys.modules.get("ray")
    if running is not None and running.is_initialized():  # its variables are ours: tidy() would remove its token
        yield
        return
    tidy()
    for name, value in _ENV.items():
        os.environ.setdefault(name, value)
    import ray

    address = cluster_address()
    with no_leftovers(own=not address) as begun, ExitStack() as stack:
        with kept_handlers():
            stack.enter_context(_joined(address) if address else _alone())
        begun()
        try:
            yield
        finally:
            WATCH.guard([])
            ray.shutdown()


@contextmanager
def _alone() -> Iterator[None]:
    """A private Ray of this process."""
    import ray
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]

    with session_folder() as folder:
        own = {
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for loopback; otherwise it uses the host's own IP
        }
        os.environ.update(own)
        os.environ.pop("RAY_AUTH_MODE", None)  # then Ray uses a token, and passes it to its children
        ray_constants.ENABLE_RAY_CLUSTER = False  # the same switch, if Ray was imported before
        AuthenticationTokenLoader.instance().reset_cache()
        try:
            with _start_named():
                ray.init(
                    address="local",
                    _node_ip_address=LOOPBACK,
                    _temp_dir=str(folder / "r"),
                    object_store_memory=_store_bytes(),
                    include_dashboard=False,
                    job_config=_job_config(),
                    logging_level=logging.ERROR,
                    log_to_driver=True,
                )
            _check_private()
            yield
        finally:
            for name in (*own, "RAY_AUTH_MODE"):
                os.environ.pop(name, None)


@contextmanager
def _start_named() -> Iterator[None]:
    """Ray's own deadline at its start, 30 s, as a MachineError that says what to do."""
    try:
        yield
    except Exception as error:
        if "timed out during startup" not in str(error):
            raise
        load = os.getloadavg()[0]
        raise MachineError(
            f"Ray did not start within its 30 s; the load of this machine is {load:.0f} on {os.cpu_count()} cores: end"
            " other programs, or start again when they have ended"
        ) from error


def _store_bytes() -> int:
    """For weights on their way to the engines: those of a model of 0.1 B parameters in 16 bits are 0.3 GB."""
    shared = Path("/dev/shm")
    free = shutil.disk_usage(shared).free if shared.is_dir() else 0
    return min(_STORE_BYTES, max(_LEAST_STORE_BYTES, free // 4))


def _job_config(sent: Path | None = None) -> Any:
    """The driver's module path for the workers, appended to theirs, so that it shadows nothing.

    ``sent``: a folder of code that every node gets.
    """
    from ray.job_config import JobConfig

    class PathLast(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:  # Ray's only switch for this
            return True

    hook = f"{prepare_worker.__module__}.{prepare_worker.__qualname__}"
    environment: dict[str, Any] = {"worker_process_setup_hook": hook, "env_vars": worker_environment()}
    return PathLast(runtime_env=environment | ({"working_dir": str(sent)} if sent else {}))


def _check_private() -> None:
    """RuntimeError if this release of Ray ignores the settings for loopback and token."""
    import ray
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    host = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    if host != LOOPBACK or not is_token_auth_enabled():
        ray.shutdown()
        raise RuntimeError(f"Ray {ray.__version__} listens on {host}, not on loopback with a token: not started")


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """The user's own cluster, with the user's token."""
    import ray

    reach_cluster()
    nodes = ask(address, _cluster.port_range, _data)
    modules = own_modules() if len(nodes) > 1 else {}
    with tempfile.TemporaryDirectory(prefix="parl-code-") as folder:
        sent = None
        if modules or len({node.code for node in nodes}) > 1:
            sent = Path(folder) / "code"
            pack(sent, modules)
        quiet = {"logging_level": logging.ERROR, "log_to_driver": True}
        ray.init(address=address, job_config=_job_config(sent), **quiet)
    with joined(Cluster(config=_cluster, nodes=nodes)):
        yield


def reach_cluster() -> None:
    """UserError if the cluster at RAY_ADDRESS takes no run, or its machines will not do; prints what differs.

    Call it before anything starts.
    """
    address = cluster_address()
    if address is None:
        return
    check_cluster()
    nodes = ask(address, _cluster.port_range, _data)
    found = verdict(nodes, _cluster, _data)
    refuse(found, address)
    _tell(tuple(found.notes))


@functools.cache
def _tell(notes: tuple[str, ...]) -> None:
    """Say each list of notes once."""
    for note in notes:
        echo(f"note: {note}", err=True)


def wait(reference: Any, deadline_s: float, whose: Sequence[Any] = (), *, computing: bool = False) -> Any:
    """The value of a Ray reference, or of a list of them; raises its error.

    ``whose``: the actors that the references wait for. Raises ActorLost for a lost one, MachineError for a
    late one, or if all stand still although they should be ``computing``.
    """
    import ray

    from parl.machine.faults import name_of

    references = list(reference) if isinstance(reference, list) else [reference]
    began = time.monotonic()
    while True:
        left = began + deadline_s - time.monotonic()
        done, late = ray.wait(references, num_returns=len(references), timeout=max(0.0, min(left, 5.0)))
        if not late:
            try:
                return ray.get(reference, timeout=max(left, _PEERS_S))
            except Exception as error:
                raise worst(failures(done) or [error]) from None
        if found := failures(done):  # a lost peer explains the others' failures, and may be reported later
            raise worst(found + failures(ray.wait(late, num_returns=len(late), timeout=_PEERS_S)[0]))
        names = [name_of(actor) for one, actor in zip(references, whose, strict=False) if one in late]
        waited = min(time.monotonic() - began, WATCH.idle_s(whose)) if computing else 0.0
        if waited > SILENT_S:
            raise MachineError(f"{', '.join(names)}: hung, nothing has been computed for {waited:.0f} s")
        if left <= 0:
            who = ", ".join(names) or "an actor"
            raise MachineError(f"{who}: no answer within {deadline_s:.0f} s")


def actor(
    cls: type[Beating],
    *args: Any,
    _label: str,
    _threads: int = 1,
    _beside: str | None = None,
    _gpus: int = 0,
    _role: Role | None = None,
    _place: dict[str, Any] | None = None,
    concurrency: int | None = None,
    **kwargs: Any,
) -> Any:
    """``cls(*args, **kwargs)`` as a Ray actor with ``_threads`` CPU threads.

    ``_label``: its name in messages, e.g. "learner rank 1"; it is watched until :func:`stop`. ``_beside``: a
    concurrency group whose calls run beside all others, one at a time. ``_gpus``: those it has to itself.
    ``_role``: where a cluster places it, None beside the driver; ``_place``: Ray's options instead.
    ``concurrency``: for async actors.
    """
    import ray

    waits = {"OMP_NUM_THREADS": str(_threads), "OMP_WAIT_POLICY": "PASSIVE"}  # engines and learner share cores
    environment = {**waits, "TOKENIZERS_PARALLELISM": "false", **_ENV}
    if _gpus:
        environment["DS_ACCELERATOR"] = "cuda"
    given: dict[str, Any] = {"num_cpus": 0, "num_gpus": _gpus, "runtime_env": {"env_vars": environment}}
    given |= options(_role) if _place is None else _place
    if concurrency is not None:
        given["max_concurrency"] = concurrency
    remote: Any = ray.remote
    groups = {GROUP: 1} | ({_beside: 1} if _beside else {})
    handle = remote(concurrency_groups=groups)(cls).options(**given).remote(*args, **kwargs)
    WATCH.add(handle, _label, asynchronous=cls.asynchronous)
    return handle


def stop(handles: Sequence[Any]) -> None:
    """Kill these actors, also stopped and hung ones."""
    import ray

    for handle in handles:
        known = WATCH.remove(handle)
        ray.kill(handle)
        if known and known.stopped:  # a stopped process does not react
            kill_quietly(known.pid)


def failures(done: list[Any]) -> list[Exception]:
    """Errors of these finished references."""
    import ray

    found: list[Exception] = []
    for reference in done:
        try:
            ray.get(reference, timeout=_PEERS_S)
        except Exception as error:
            found.append(error)
    return found


def worst(found: list[Exception]) -> Exception:
    """Of simultaneous failures the one that explains the others: a lost actor, or the first.

    Peers of a lost rank fail with broken connections, often before its own end is known.
    """
    from parl.machine.faults import is_machine, named

    return named(next((error for error in found if is_machine(error)), found[0]))
