"""What goes wrong in a command, as an exit code and one clear message."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from parl.errors import UserError


@contextmanager
def reported(hint: str = "") -> Iterator[None]:
    """Turn what goes wrong into an exit code: 2 a mistake with a fix, 130 interrupted, 1 anything else."""
    try:
        yield
    except UserError as error:
        typer.echo(f"error: {getattr(error, 'cause', None) or error}", err=True)  # Ray wraps what its actors raise
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo(f"\ninterrupted{hint}", err=True)
        raise typer.Exit(130) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception:
        traceback.print_exc()
        raise typer.Exit(1) from None
