"""Resolves the names of environments, families, engines, objectives and rewards to classes.

A name is a built-in (``k25``), a class anywhere on the Python path (``my_package.my_module:MyObjective``), or
an entry point that an installed package declares in the kind's group::

    [project.entry-points."parl.objectives"]
    mine = "my_package.my_module:MyObjective"

The class is resolved before the configuration is validated, because it brings the section for its keys. A
user's module is found on ``PYTHONPATH`` and, last, in the working directory. No torch.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from parl.errors import UserError


class PluginError(UserError, ValueError):
    """A name without a usable class; the message says what was looked for and what exists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of plug-in. ``what``: its name in messages; ``built_in``: name to ``module:Class``.

    ``check`` raises ValueError for an unsuitable class.
    """

    what: str
    built_in: dict[str, str]
    check: Callable[[type], None]

    @property
    def group(self) -> str:
        """The group of its entry points."""
        return {"family": "parl.families"}.get(self.what, f"parl.{self.what}s")

    def names(self) -> list[str]:
        """Built-ins first, then installed ones."""
        return [*self.built_in, *(name for name in _installed(self.group) if name not in self.built_in)]

    def origin(self, name: str) -> str:
        """Where ``name`` comes from: built in, a package with its version, or its module."""
        if name in self.built_in:
            return "built in"
        point = _installed(self.group).get(name)
        if point is None:
            return name.partition(":")[0]
        return f"{point.dist.name} {point.dist.version}" if point.dist else point.module

    def resolve(self, name: Any) -> type:
        """The class of ``name``; PluginError says what is wrong, with the nearest name."""
        if not isinstance(name, str):
            raise PluginError(self._unknown(""))
        if name in self.built_in:
            return _loaded(self, name, self.built_in[name])
        if point := _installed(self.group).get(name):
            return _loaded(self, name, point.value)
        if ":" in name:
            return _loaded(self, name, name)
        raise PluginError(self._unknown(name))

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        if not hint and "." in name:
            module, _, leaf = name.rpartition(".")
            hint = f"; a class of your own is written {module}:{leaf}"
        return f"must be one of {', '.join(self.names())}, or package.module:Class{hint}"


@lru_cache
def _installed(group: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=group)}


def _loaded(kind: Kind, name: str, value: str) -> type:
    """The class ``module:Class`` of ``name``; an error of its module is reported with the line."""
    module, _, attribute = value.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise PluginError(f"{value} is not written package.module:Class")
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise PluginError(f"there is no module {error.name}: is its folder on PYTHONPATH, or installed?") from None
        raise PluginError(f"{module} cannot be imported: {error}") from error
    except Exception as error:
        raise PluginError(f"{module} cannot be imported: {type(error).__name__}: {error}{_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(found).items() if inspect.isclass(value) and key[0] != "_"]
            close = difflib.get_close_matches(part, public, n=1)
            raise PluginError(f"{module} has no {part}" + (f"; did you mean {close[0]}?" if close else ""))
        found = getattr(found, part)
    if not inspect.isclass(found):
        raise PluginError(f"{value} is {type(found).__name__}, not a class")
    try:
        kind.check(found)
    except ValueError as error:
        raise PluginError(f"{value} is no {kind.what}: {error}") from None
    return found


def _line(error: BaseException) -> str:
    """The line where the module's import failed."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""
