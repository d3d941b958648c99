"""What an attack is: a name, and a function that raises where the program did not hold."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import attacks


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One try. ``run`` gets an empty folder; it raises (AssertionError or anything else) where the try succeeded.

    ``area`` is a row of the table in docs/security.md: bodies, files, secrets, process faults, writers, network,
    servers, user data ... It raises :class:`NotHere` where this machine cannot try it.
    """

    area: str
    name: str
    run: Callable[[Path], None]


class NotHere(Exception):
    """This machine lacks what the try needs; the text says what."""


def all_attacks() -> Iterable[Attack]:
    """The cases of every module of this package that has a function ``cases``."""
    for found in sorted(module.name for module in pkgutil.iter_modules(attacks.__path__)):
        module = importlib.import_module(f"attacks.{found}")
        if hasattr(module, "cases"):
            yield from module.cases()
