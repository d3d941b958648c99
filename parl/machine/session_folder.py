"""The private folder of a one-machine run: Ray's session (sockets, logs) and its token; deleted at the end.

Ray makes its own folders writable for everybody; a parent of mode 700 protects them.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parl.errors import UserError

_PREFIX = "parl-ray-"
_SOCKET_BYTES = 84  # "/parl-ray-xxxxxxxx/r/session_2026-11-26_00-59-47_968364_4194304/sockets/plasma_store"
_PATH_BYTES = 103 if sys.platform == "darwin" else 107  # of a socket's path
_YOUNG_S = 60.0


@contextmanager
def session_folder() -> Iterator[Path]:
    """A new folder of mode 700 with a file ``token`` of mode 600; deletes folders of dead runs."""
    base = _base()
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
    lock = _locked(folder)
    try:
        _write_token(folder / "token")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _base() -> Path:
    """The user's temporary folder, or a common one if its name is too long for sockets."""
    try:
        folders = [tempfile.gettempdir()]
    except FileNotFoundError as error:
        raise UserError(f"no temporary folder can be written to ({error}): set TMPDIR to one") from None
    folders += ["/tmp", "/var/tmp", "/dev/shm"]
    for folder in folders:
        if len(os.fsencode(folder)) + _SOCKET_BYTES <= _PATH_BYTES and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    raise UserError(f"{folders[0]} is too long for the sockets in it and {folders[1]} cannot be written: set TMPDIR")


def _write_token(path: Path) -> None:
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(file, "w") as out:
        out.write(secrets.token_hex(32))


def _locked(folder: Path) -> int | None:
    """The folder's lock, held while its process lives; None if another process holds it."""
    file = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def _sweep(base: Path) -> None:
    """Delete folders of this user's killed runs."""
    for folder in base.glob(f"{_PREFIX}*"):
        try:
            about = folder.lstat()
            if folder.is_symlink() or about.st_uid != os.getuid() or time.time() - about.st_mtime < _YOUNG_S:
                continue
            lock = _locked(folder)
        except OSError:  # another process was faster
            continue
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
