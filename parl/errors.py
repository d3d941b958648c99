"""Errors that a user can fix. The command line prints their text without a traceback, and exits with 2."""

from __future__ import annotations


class UserError(Exception):
    """An error with a known fix; the text says what is wrong and what to do."""


class ConfigError(UserError):
    """The configuration is wrong; the text lists every problem by dotted key."""


class MachineError(UserError):
    """The machine failed: a full disk, a dead or hung process, a lost Ray. The run's folder is intact.

    The command line prints its text, the cause, and exits with 1.
    """
