"""Turns errors of a command into an exit code and one clear message."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from parl.errors import MachineError, UserError
from parl.machine.ending import signals
from parl.machine.shell_variables import tidy
from parl.shown.redaction import without_credentials
from parl.shown.terminal import Unread, echo, echo_traceback, unread

# Errors that only the user can fix: permissions, read-only places, files where folders should be
_USERS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)

_NO_PLACE = (
    errno.ENOENT,
    errno.EEXIST,
    errno.EINVAL,
    errno.ELOOP,
    errno.ENXIO,
    errno.EOPNOTSUPP,
)  # of a place to write

_DISK = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "raise the quota, or free some space",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: "mount it writable, or set another root",
    errno.EACCES: "give this user the right, or set another root",
    errno.EPERM: "give this user the right, or set another root",
    errno.EIO: "look at the disk",
    errno.ENODEV: "look at the disk",
    errno.ESTALE: "mount the file system again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "raise the limit of open files (fs.file-max)",
    errno.ENOMEM: "free some memory",
}


@contextmanager
def reported(hint: str = "") -> Iterator[None]:
    """Prepare the environment, and turn errors into an exit code. ``hint`` says how to continue.

    2: a mistake with a fix; 1: the machine's failure or a bug; 130: interrupted; 143 and 129: ended by
    SIGTERM and SIGHUP; 141: nobody reads the output.
    """
    with signals(hint) as ending:
        try:
            tidy()
            yield
            if ending.received:  # a server ended normally
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            echo(f"\n{ending.word}{hint}", err=True)
            raise typer.Exit(ending.code) from None
        except (typer.Exit, typer.Abort):
            raise
        except UserError as error:
            text = getattr(error, "cause", None) or error  # Ray wraps what its actors raise
            failed = isinstance(error, MachineError)
            more = hint if failed and "--resume" not in str(text) else ""
            echo(without_credentials(f"error: {text}{more}"), err=True)
            raise typer.Exit(1 if failed else 2) from None
        except Exception as error:
            if isinstance(error, BrokenPipeError) and (isinstance(error, Unread) or unread()):
                raise typer.Exit(141) from None  # a shell's code for programs ended by SIGPIPE
            if (cause := machine_cause(error)) is None:
                echo_traceback()
            else:
                echo(without_credentials(f"error: {cause}{hint}"), err=True)
            raise typer.Exit(2 if isinstance(error, OSError) and error.errno in _USERS else 1) from None


@contextmanager
def written_to(out: Path) -> Iterator[None]:
    """Write to the file or folder ``out`` that a user named: UserError if that fails."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_PLACE or not isinstance(error.filename, str):
            raise
        at, out = Path(error.filename).absolute(), out.absolute()
        if not (at.parent == out.parent or at.is_relative_to(out) or out.is_relative_to(at)):
            raise
        raise UserError(f"{out} cannot be made ({at}: {error.strerror}): name another place with --out") from None


def machine_cause(error: BaseException) -> str | None:
    """The machine's failure behind ``error`` in one paragraph; None for a bug, which needs its traceback."""
    if "ray" in sys.modules:
        from parl.machine.faults import is_machine, said
        from rollouts.faults import first_cause

        if is_machine(error):
            return said(error)
        error = first_cause(error)
    if isinstance(error, MemoryError):
        return f"out of memory: {error or 'an allocation failed'}"
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if isinstance(error, OSError) and number in (*_DISK, *_USERS):
        cure = f"; {_DISK[number]}" if number in _DISK else ""
        return f"{error.filename or 'a file'}: {error.strerror}{cure}"
    if number is None:  # arrow and safetensors have only a text
        words = {"No space left on device": errno.ENOSPC, "Read-only file system": errno.EROFS}
        number = next((code for word, code in words.items() if word in text), None)
    return f"{text}; {_DISK[number]}" if number in _DISK else None
