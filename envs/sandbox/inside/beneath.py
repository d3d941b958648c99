"""Opens files below a folder that untrusted code may write to: without links, and only plain files."""

from __future__ import annotations

import contextlib
import os
import stat


class Outside(ValueError):
    """A name that leads out of the folder, through a link, or to something that is no plain file."""


def parts(name: str) -> list[str]:
    """The steps of a relative ``name``; :class:`Outside` for absolute ones, ``..``, and NUL."""
    steps = [step for step in name.split("/") if step not in ("", ".")]
    if name.startswith("/") or ".." in steps or "\0" in name or not steps or len(name.encode()) > 1024:
        raise Outside(f"{name!r} is not a relative path below the folder")
    return steps


def open_file(root: str, name: str, *, write: bool = False) -> int:
    """A descriptor of the plain file ``name`` below ``root``. ``write``: it is emptied, or made with its folders.

    OSError as ``open`` gives it; :class:`Outside` for links, hard links, folders, devices and FIFOs.
    """
    steps = parts(name)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for step in steps[:-1]:
            folder = _enter(folder, step, make=write)
        flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        flags |= os.O_RDWR | os.O_CREAT if write else os.O_RDONLY
        try:
            found = os.open(steps[-1], flags, 0o666, dir_fd=folder)
        except OSError as error:
            if os.path.islink(f"/proc/self/fd/{folder}/{steps[-1]}"):
                raise Outside(f"{name!r} is a link") from error
            raise
    finally:
        os.close(folder)
    status = os.fstat(found)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(found)
        raise Outside(f"{name!r} is not a plain file")
    if write:
        os.ftruncate(found, 0)
    return found


def _enter(folder: int, step: str, *, make: bool) -> int:
    """The subfolder ``step`` in place of ``folder``, which stays open on errors."""
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(step, 0o777, dir_fd=folder)
    inner = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    os.close(folder)
    return inner


def read(root: str, name: str, most: int) -> bytes:
    """Up to ``most`` bytes of a file below ``root``."""
    with os.fdopen(open_file(root, name), "rb") as file:
        return file.read(most)


def write(root: str, name: str, data: bytes) -> None:
    """Write a file below ``root``, with its folders, for everybody to read and write."""
    with os.fdopen(open_file(root, name, write=True), "wb") as file:
        file.write(data)
