"""Mistakes that a user can fix. The command line prints their text alone, without a traceback, and exits with 2."""

from __future__ import annotations


class UserError(Exception):
    """A mistake with a known fix; the text says what is wrong and what to do."""


class ConfigError(UserError):
    """The configuration is wrong; the text lists every problem by its dotted key."""


class MachineError(UserError):
    """The machine failed a run: a full disk, a dead or hung process, a lost Ray. The run's folder is intact.

    The text is one readable cause; the command line prints it alone, and exits with 1.
    """
