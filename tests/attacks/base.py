"""An attack: a name, and a function that raises if the program did not withstand it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import attacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One attack. ``run`` gets an empty folder; it raises if the attack succeeded.

    ``area`` is a row of the table in docs/security.md: bodies, files, secrets, process faults, writers,
    network, servers, user data ... It raises :class:`NotHere` if this machine cannot run it.
    """

    area: str
    name: str
    run: Callable[[Path], None]


class NotHere(Exception):
    """This machine lacks what the attack needs; the text says what."""


def all_attacks() -> Iterable[Attack]:
    """The cases of every module of this package with a function ``cases``."""
    for found in sorted(module.name for module in pkgutil.iter_modules(attacks.__path__)):
        module = importlib.import_module(f"attacks.{found}")
        if hasattr(module, "cases"):
            yield from module.cases()
