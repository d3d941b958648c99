"""What goes wrong in a command, as an exit code and one clear message."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from parl.environment import tidy
from parl.errors import UserError
from parl.redaction import without_credentials
from parl.terminal import Unread, echo, echo_traceback, unread

# What only the user can mend: rights, places that cannot be written, files where folders should be
_USERS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


@contextmanager
def reported(hint: str = "") -> Iterator[None]:
    """Make the environment fit, and turn what goes wrong into an exit code.

    2 is a mistake with a fix, 130 interrupted, 141 nobody reads what is printed, 1 anything else.
    """
    try:
        tidy()
        yield
    except UserError as error:
        cause = getattr(error, "cause", None) or error  # Ray wraps what its actors raise
        echo(without_credentials(f"error: {cause}"), err=True)
        raise typer.Exit(2) from None
    except BrokenPipeError as error:
        if not isinstance(error, Unread) and not unread():  # a pipe of ours
            echo_traceback()
            raise typer.Exit(1) from None
        raise typer.Exit(141) from None  # what a shell says of programs that SIGPIPE ends
    except OSError as error:
        if error.errno not in _USERS:
            echo_traceback()
            raise typer.Exit(1) from None
        echo(f"error: {error.filename or 'a file'}: {error.strerror}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        echo(f"\ninterrupted{hint}", err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception:
        echo_traceback()
        raise typer.Exit(1) from None
