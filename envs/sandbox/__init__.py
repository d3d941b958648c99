"""Runs code that a model wrote, isolated as strongly as the machine allows. Standard library only.

``Sandbox`` and ``Ran`` come from ``envs.sandbox.sandbox``; they load on first use, because the program inside
imports from this package too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from envs.sandbox.job import Limits
    from envs.sandbox.sandbox import Ran, Sandbox, SandboxError

__all__ = ["Limits", "Ran", "Sandbox", "SandboxError"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from envs.sandbox import sandbox

    return getattr(sandbox, name)
