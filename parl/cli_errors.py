"""What goes wrong in a command, as an exit code and one clear message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from parl.environment import tidy
from parl.errors import UserError
from parl.redaction import without_credentials
from parl.terminal import echo, echo_traceback


@contextmanager
def reported(hint: str = "") -> Iterator[None]:
    """Make the environment fit, and turn what goes wrong into an exit code.

    2 is a mistake with a fix, 130 interrupted, 1 anything else.
    """
    try:
        tidy()
        yield
    except UserError as error:
        cause = getattr(error, "cause", None) or error  # Ray wraps what its actors raise
        echo(without_credentials(f"error: {cause}"), err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        echo(f"\ninterrupted{hint}", err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception:
        echo_traceback()
        raise typer.Exit(1) from None
