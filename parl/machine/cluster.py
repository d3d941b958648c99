"""Ray: starting and stopping it, and the actors that a run is made of.

A one-machine run listens on loopback alone, asks everybody for a token that it made for itself, and keeps its files
in a folder that only its user can enter. Every wait has a deadline. The learner's or the driver's death ends the run
with the first traceback; engines and rollout workers are started again by their owner (``parl.collect.collector``).
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from parl.errors import MachineError, UserError
from parl.machine.ending import kept_handlers
from parl.machine.processes import no_leftovers
from parl.machine.session_folder import session_folder
from parl.machine.shell_variables import check_cluster, cluster_address, tidy
from parl.machine.watch import SILENT_S, WATCH, kill_quietly
from parl.own_packages import prepare_worker, worker_environment
from rollouts.beat import GROUP, Beating

_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_prestart_worker_first_driver": "0",  # idle processes that no actor here can use
    "RAY_worker_niceness": "0",  # Ray would let every other process on the machine go first
    "DS_ACCELERATOR": "cpu",
}
_JOIN_S = 30.0
_PEERS_S = 5.0  # what a lost rank's end takes to be known, after its peers failed for it
_STORE_BYTES = 512 * 2**20
LOOPBACK = "127.0.0.1"


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray instance on this machine (or the cluster that RAY_ADDRESS names) for the time of the block."""
    running = sys.modules.get("ray")
    if running is not None and running.is_initialized():  # its variables are ours, tidy() would take its token away
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
    """A Ray of this process's own, which nobody else reaches."""
    import ray
    from ray._private import ray_constants
    from ray._raylet import AuthenticationTokenLoader  # pyright: ignore[reportAttributeAccessIssue]

    with session_folder() as folder:
        own = {
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for loopback; else it takes the host's own IP
        }
        os.environ.update(own)
        os.environ.pop("RAY_AUTH_MODE", None)  # then Ray asks for a token, and says so to its child processes itself
        ray_constants.ENABLE_RAY_CLUSTER = False  # that switch again, where Ray was imported before
        AuthenticationTokenLoader.instance().reset_cache()
        try:
            ray.init(
                address="local",
                _node_ip_address=LOOPBACK,
                _temp_dir=str(folder / "r"),
                object_store_memory=_STORE_BYTES,
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


def _job_config() -> Any:
    """The driver's path for the workers, at the end of theirs. Ray would put its working directory first, where the
    user's ``model.py`` takes the place of ours, and ``random.py`` that of Python's."""
    from ray.job_config import JobConfig

    class PathLast(JobConfig):
        def _runtime_env_has_working_dir(self) -> bool:  # the one switch that Ray has for it
            return True

    hook = f"{prepare_worker.__module__}.{prepare_worker.__qualname__}"
    return PathLast(runtime_env={"worker_process_setup_hook": hook, "env_vars": worker_environment()})


def _check_private() -> None:
    """RuntimeError where this release of Ray does not do what it was told."""
    import ray
    from ray._private.authentication.authentication_utils import is_token_auth_enabled

    host = ray.get_runtime_context().gcs_address.rpartition(":")[0]
    if host != LOOPBACK or not is_token_auth_enabled():
        ray.shutdown()
        raise RuntimeError(f"Ray {ray.__version__} listens on {host}, not on loopback with a token: not started")


@contextmanager
def _joined(address: str) -> Iterator[None]:
    """The user's own cluster, with the user's own token."""
    import ray

    reach_cluster()
    ray.init(address=address, job_config=_job_config(), logging_level=logging.ERROR, log_to_driver=True)
    yield


def reach_cluster() -> None:
    """UserError where RAY_ADDRESS names no cluster that takes this run; call it before anything is begun."""
    address = cluster_address()
    if address is not None:
        check_cluster()
        _try_to_join(address)


@functools.cache
def _try_to_join(address: str) -> None:
    """UserError where a process of its own cannot join: Ray waits for a minute, and then ends the process itself."""
    patience = {
        f"RAY_{name}": "10" for name in ("gcs_rpc_server_reconnect_timeout_s", "gcs_server_request_timeout_seconds")
    }
    command = [sys.executable, "-P", "-c", "import sys, ray; ray.init(sys.argv[1], logging_level='error')", address]
    try:
        done = subprocess.run(command, env=os.environ | patience, capture_output=True, text=True, timeout=_JOIN_S)
    except subprocess.TimeoutExpired:
        said, joined = f"no answer within {_JOIN_S:g} s", False
    else:
        said, joined = " ".join(done.stderr.strip().splitlines()[-1:]), done.returncode == 0
    if not joined:
        raise UserError(
            f"RAY_ADDRESS={address}: what answers there is no Ray cluster that takes this run ({said[:400]}); for a"
            " token set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; or correct the address, or unset it to train here"
        )


def wait(reference: Any, deadline_s: float, whose: Sequence[Any] = (), *, computing: bool = False) -> Any:
    """The value of a Ray reference, or of a list of them; raises what its maker raised.

    ``whose``: the actors that the references wait for. ActorLost names one that is lost, MachineError one that is late,
    or where all stand still although they should be ``computing``.
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
        if found := failures(done):  # a lost peer is why others fail, and may be heard of after them
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
    concurrency: int | None = None,
    **kwargs: Any,
) -> Any:
    """``cls(*args, **kwargs)`` as a Ray actor with ``_threads`` CPU threads; ``concurrency`` for async actors.

    ``_label``: what it is called when it is lost, e.g. "learner rank 1"; it is watched until :func:`stop`.
    ``_beside``: name of a concurrency group whose calls run beside all others, one at a time.
    """
    import ray

    environment = {"OMP_NUM_THREADS": str(_threads), "TOKENIZERS_PARALLELISM": "false", **_ENV}
    options: dict[str, Any] = {"num_cpus": 0, "runtime_env": {"env_vars": environment}}
    if concurrency is not None:
        options["max_concurrency"] = concurrency
    remote: Any = ray.remote
    groups = {GROUP: 1} | ({_beside: 1} if _beside else {})
    handle = remote(concurrency_groups=groups)(cls).options(**options).remote(*args, **kwargs)
    WATCH.add(handle, _label, asynchronous=cls.asynchronous)
    return handle


def stop(handles: Sequence[Any]) -> None:
    """End these actors, also those that are stopped or hang."""
    import ray

    for handle in handles:
        known = WATCH.remove(handle)
        ray.kill(handle)
        if known and known.stopped:  # it does not hear
            kill_quietly(known.pid)


def failures(done: list[Any]) -> list[Exception]:
    """What these references, which are there, raise."""
    import ray

    found: list[Exception] = []
    for reference in done:
        try:
            ray.get(reference, timeout=_PEERS_S)
        except Exception as error:
            found.append(error)
    return found


def worst(found: list[Exception]) -> Exception:
    """Of failures that came at once the one that explains the others: a lost actor, or the first.

    The peers of a lost rank fail with broken connections, often before its own end is known.
    """
    from parl.machine.faults import is_machine, named

    return named(next((error for error in found if is_machine(error)), found[0]))
