"""Locks on folders: one writer per folder, released by the kernel with its process.

``FOLDER/.lock`` names the owner. The lock is ``flock``'s: no crash leaves it, no child inherits it, and it
moves with the folder. Readers need none. On a file system without locks, the file's text counts as long as
its process lives.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from parl.errors import UserError

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
_TRIES = 20
_OTHER_START_S = 2.0  # a process started so much later than the owner has reused its number
_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked child must not keep the lock when its parent dies."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process that writes into a folder."""

    what: str  # its activity: "a run", "an evaluation"
    pid: int
    host: str
    since: str
    began: float  # seconds since the epoch: process numbers are reused

    @classmethod
    def this_process(cls, what: str) -> Owner:
        """This process as an owner."""
        began, now = psutil.Process().create_time(), time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(what=what, pid=os.getpid(), host=socket.gethostname(), since=now, began=began)

    @property
    def state(self) -> str | None:
        """``running``, ``sleeping``, ``stopped``, ...; None if it is gone or not visible here."""
        if self.host != socket.gethostname() or not psutil.pid_exists(self.pid):
            return None
        process = psutil.Process(self.pid)
        return process.status() if abs(process.create_time() - self.began) < _OTHER_START_S else None

    def __str__(self) -> str:
        stopped = f"; it is stopped: kill -CONT {self.pid} lets it go on" if self.state == "stopped" else ""
        return f"pid {self.pid} on {self.host} since {self.since}{stopped}"


@contextmanager
def owning(folder: Path, what: str, cure: str, *, name: str = LOCK) -> Iterator[None]:
    """Own ``folder`` (created if missing) inside the block.

    ``what``: the activity, e.g. "a run"; ``cure``: what another process can do. UserError names the current
    owner.
    """
    with ExitStack() as stack:
        stack.callback(_release, _acquire(folder, what, cure, name))
        yield


def _acquire(folder: Path, what: str, cure: str, name: str) -> int:
    """The descriptor of the acquired lock on ``folder``/``name``."""
    path = folder / name
    for _ in range(_TRIES):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # the folder was just moved away
            continue
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}): {what} needs a folder of its own") from None
        try:
            _lock(lock, path, what, cure)
        except BaseException:
            os.close(lock)
            raise
        if path.exists() and os.path.samestat(path.stat(), os.fstat(lock)):
            _held.add(lock)
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(asdict(Owner.this_process(what))).encode(), 0)
            return lock
        os.close(lock)  # the folder was moved away meanwhile
    if not folder.is_dir():
        raise UserError(f"{folder} cannot be made there: {what} needs a folder of its own; name another one")
    raise UserError(f"{folder} is moved away again and again while {what} is to begin in it: {cure}")


def _lock(lock: int, path: Path, what: str, cure: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        owner = owner_of(path) or _late(path)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise UserError(f"{path} cannot be locked: {error.strerror}") from None
        owner = owner_of(path)
        if owner is None or (owner.host == socket.gethostname() and owner.state is None):
            return
        cure += f"; if that process is gone, delete {path} (this file system has no locks)"
    doing, who = (owner.what, f" ({owner})") if owner else (what, "")
    raise UserError(f"{doing} is under way in {path.parent}{who}: {cure}")


def _late(path: Path) -> Owner | None:
    """The owner that has just taken the lock and may not have written its name yet."""
    time.sleep(0.2)
    return owner_of(path)


def _release(lock: int) -> None:
    if lock in _held:  # not in a forked child
        _held.discard(lock)
        os.ftruncate(lock, 0)
        os.close(lock)


def owner_of(path: Path) -> Owner | None:
    """The owner in the lock file ``path``; None if there is none, or the text is not valid."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        owner = Owner(**{name: kind(told[name]) for name, kind in _KINDS.items()})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    printable = all(text.isprintable() for text in (owner.what, owner.host, owner.since))
    return owner if printable and owner.pid > 0 else None


_KINDS = {"what": str, "pid": int, "host": str, "since": str, "began": float}
