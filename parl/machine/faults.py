"""Ray's errors in readable form: the actor, its process and machine, the cause, and the end of its log.

:data:`CURED` lists the classes of ``ray.exceptions`` after which new rollout actors can continue; any other
ends the run. Errors of an actor's own code (``RayTaskError``) are unwrapped to their first cause.
"""

from __future__ import annotations

import glob
import re
import socket
from collections.abc import Sequence
from pathlib import Path

from ray import exceptions as failures
from ray._private import worker

from parl.errors import MachineError
from parl.machine.watch import WATCH, Watched
from rollouts.faults import Lost, MachineFault, first_cause

_TAIL = 12  # lines of a log
_NOISE = (":job_id:", ":actor_name:", ":task_name:")
CURED = (
    failures.RayActorError,  # ActorDiedError, ActorUnavailableError
    failures.WorkerCrashedError,
    failures.NodeDiedError,
    failures.OutOfMemoryError,
    failures.ObjectLostError,  # ObjectFetchTimedOutError, OwnerDiedError, ObjectReconstructionFailedError, ...
    failures.GetTimeoutError,
    failures.ActorUnschedulableError,
    failures.ActorPlacementGroupRemoved,
    failures.TaskUnschedulableError,
    failures.TaskPlacementGroupRemoved,
    failures.RayChannelError,
    failures.RpcError,
    failures.AsyncioActorExit,
    failures.TaskCancelledError,
    failures.PlasmaObjectNotAvailable,
    failures.PendingCallsLimitExceeded,
)


class ActorLost(MachineError, failures.RayActorError):
    """An actor that the run needs died or hung; the text names it."""

    def __init__(self, text: str, actor_id: str | None = None) -> None:
        failures.RayActorError.__init__(self, actor_id=actor_id or "", error_msg=text)


def curable(error: BaseException) -> bool:
    """Whether new rollout actors, or engines reached again, may fix ``error``."""
    cause = first_cause(error)
    return isinstance(cause, Lost) or (isinstance(cause, CURED) and not isinstance(cause, failures.RayTaskError))


def is_machine(error: BaseException) -> bool:
    """Whether it is a failure of Ray or the machine, not of the code that ran."""
    cause = first_cause(error)
    return isinstance(cause, MachineFault | MachineError | failures.RayError)


def said(error: BaseException) -> str:
    """A paragraph about ``error``: the actor, the cause, and the end of its log."""
    cause = first_cause(error)
    if isinstance(cause, MachineError):
        return str(cause)
    if not isinstance(cause, failures.RayError):
        return f"{type(cause).__name__}: {cause}"
    actor_id = getattr(cause, "actor_id", None)
    if isinstance(cause, failures.OutOfMemoryError):
        actor_id = _first(r"Actor\((\w+)\)", str(cause))
    struck = WATCH.about(actor_id if isinstance(actor_id, str) else None)
    text = struck.why if struck and struck.why else f"{type(cause).__name__}: {_gist(str(cause))}"
    pid = struck.pid if struck and struck.pid else _pid(str(cause))
    label = struck.label if struck else _first(r"task name=([\w.]+)", str(cause)) or "a process of Ray"
    name = struck.name if struck and struck.pid else f"{label} (pid {pid or '?'})"
    return f"{name} is lost: {text}{_tail(pid)}"


def named(error: BaseException) -> Exception:
    """``error`` for the end of a run: Ray's failures with :func:`said`, others unchanged."""
    cause = first_cause(error)
    if isinstance(cause, failures.RayActorError) and not isinstance(cause, MachineError):
        return ActorLost(said(error), getattr(cause, "actor_id", None))
    if isinstance(cause, failures.RayError) and not isinstance(cause, failures.RayTaskError | MachineError):
        return MachineError(said(error))
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def struck(handles: Sequence[object]) -> str:
    """Which of these actors died or hung, with the end of its log; empty if none is known to."""
    found = []
    for handle in handles:
        one = WATCH.about(handle._actor_id.hex())  # type: ignore[attr-defined]
        if one and one.why:
            found.append(f"{one.name}: {one.why}")
        elif one and one.pid and one.host == socket.gethostname() and one.local is None:
            found.append(f"{one.name}: its process has ended{_tail(one.pid)}")
    return "; ".join(found)


def name_of(handle: object) -> str:
    """Role, number, process and machine of an actor."""
    known: Watched | None = WATCH.about(handle._actor_id.hex())  # type: ignore[attr-defined]
    return known.name if known else "an actor"


def log_tail(pid: int) -> list[str]:
    """The last lines of the process ``pid`` of this machine's Ray, standard error before output."""
    node = getattr(worker, "_global_node", None)  # Ray has no public access to its logs
    if not pid or node is None:
        return []
    for stream in ("err", "out"):
        for path in glob.glob(f"{node.get_logs_dir_path()}/worker-*-{pid}.{stream}"):
            lines = Path(path).read_text(errors="replace").splitlines()
            if lines := [line for line in lines if line.strip() and not line.startswith(_NOISE)]:
                return lines[-_TAIL:]
    return []


def _tail(pid: int) -> str:
    lines = log_tail(pid)
    return "".join(f"\n  | {line[:300]}" for line in lines) if lines else " (its log is empty)"


def _gist(text: str) -> str:
    """Ray's text without its table of identifiers and generic advice."""
    if used := _first(r"was (\S+ used / \S+ limit)", text):
        share = _first(r"exceeded threshold of \S+ \((\S+) of", text)
        users = re.findall(r"^(\d+)\t([\d.]+)\t(.{1,60})", text, re.MULTILINE)[:3]
        most = "; ".join(f"{gigabytes} GB by {command.strip()} (pid {pid})" for pid, gigabytes, command in users)
        return f"Ray ended it, as this machine's memory was {used}, Ray's own limit is {share}" + (
            f"; most of it: {most}" if most else ""
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("\t")]
    gist = " ".join(lines[1:] or lines).partition(" Some common causes include")[0]
    return gist[:600]


def _pid(text: str) -> int:
    for line in text.splitlines():
        key, _, value = line.strip().partition(": ")
        if key == "pid" and value.isdigit():
            return int(value)
    return int(_first(r"\bpid=(\d+)", text) or 0)


def _first(pattern: str, text: str) -> str | None:
    """The first group of ``pattern`` in ``text``."""
    found = re.search(pattern, text)
    return found[1] if found else None
