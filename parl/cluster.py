"""Ray: starting and stopping it, and the actors that a run is made of.

Every wait has a deadline. The learner's or the driver's death ends the run with the first traceback; engines and
rollout workers are started again by their owner (``parl.collect``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_prestart_worker_first_driver": "0",  # idle processes that no actor here can use
    "RAY_worker_niceness": "0",  # Ray would let every other process on the machine go first
    "DS_ACCELERATOR": "cpu",
}
_STORE_BYTES = 512 * 2**20


@contextmanager
def local_ray() -> Iterator[None]:
    """A Ray instance on this machine (or the cluster that RAY_ADDRESS names) for the time of the block."""
    for name, value in _ENV.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    local: dict[str, Any] = {} if address else {"object_store_memory": _STORE_BYTES, "include_dashboard": False}
    ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=True, **local)
    try:
        yield
    finally:
        ray.shutdown()


def wait(reference: Any, deadline_s: float) -> Any:
    """The value of a Ray reference; raises what its maker raised, GetTimeoutError at the deadline."""
    import ray

    return ray.get(reference, timeout=deadline_s)


def actor(
    cls: type, *args: Any, _threads: int = 1, _beside: str | None = None, concurrency: int | None = None, **kwargs: Any
) -> Any:
    """``cls(*args, **kwargs)`` as a Ray actor with ``_threads`` CPU threads; ``concurrency`` for async actors.

    ``_beside``: name of a concurrency group whose calls run beside all others, one at a time.
    """
    import ray

    environment = {"OMP_NUM_THREADS": str(_threads), "TOKENIZERS_PARALLELISM": "false", **_ENV}
    options: dict[str, Any] = {"num_cpus": 0, "runtime_env": {"env_vars": environment}}
    if concurrency is not None:
        options["max_concurrency"] = concurrency
    remote: Any = ray.remote
    made = remote(concurrency_groups={_beside: 1})(cls) if _beside else remote(cls)
    return made.options(**options).remote(*args, **kwargs)
