"""A job as the worker reads it, and the limits that hold for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run may use. Bytes; ``memory`` and ``cpu_s`` hold for each process, ``memory`` for all too.

    ``disk``: all files together; ``files``: open ones of a process; ``inodes``: files and folders.
    """

    memory: int = 1 << 29
    disk: int = 1 << 26
    files: int = 256
    inodes: int = 10_000
    processes: int = 32
    output: int = 1 << 16

    def rules(self, deadline_s: float) -> dict[str, int]:
        """Those that the kernel checks, as the worker takes them."""
        return {
            "memory": self.memory,
            "disk": self.disk,
            "files": self.files,
            "processes": self.processes,
            "cpu_s": math.ceil(deadline_s) + 1,
        }


def order(code_or_argv: str | Sequence[str], *, deadline_s: float, **given: Any) -> dict[str, Any]:
    """A job as the worker reads it."""
    plain = isinstance(code_or_argv, str)
    task = {"code": code_or_argv if plain else "", "argv": None if plain else list(code_or_argv)}
    return (
        {"stdin": "", "env": {}, "files": {}, "collect": [], "path": [], "keep": False}
        | task
        | given
        | {"deadline_s": deadline_s}
    )
