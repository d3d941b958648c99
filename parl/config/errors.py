"""A mistake in a configuration, beside the errors that all of ``parl`` knows."""

from __future__ import annotations

from parl.errors import MachineError, UserError

__all__ = ["ConfigError", "MachineError", "UserError"]


class ConfigError(UserError):
    """The configuration is wrong; the text lists every problem by its dotted key."""
