"""Protects our packages from shadowing: a ``model.py`` or ``envs/`` in the user's folder never replaces them.

It is enough to import the packages beside this one before anything else. The user's own modules stay
importable, after everything installed.
"""

from __future__ import annotations

import importlib
import json
import os
import site
import sys
from collections.abc import Iterable

NAMES = ("envs", "model", "rewards", "rollouts")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATH_VARIABLE = "PARL_SYS_PATH"  # the driver's, for Ray's workers


def claim() -> None:
    """Import the packages beside ``parl``; ImportError if another module of such a name is already loaded."""
    if sys.argv[:1] == ["-m"] and sys.path[:1] == [here()]:  # python -m: the working directory comes first
        sys.path.append(sys.path.pop(0))
    sys.path.insert(0, ROOT)
    try:
        for name in NAMES:
            file = getattr(importlib.import_module(name), "__file__", None)
            if file is None or os.path.dirname(os.path.dirname(os.path.realpath(file))) != os.path.realpath(ROOT):
                raise ImportError(
                    f"{file or sys.modules[name]} was imported as {name}, which is the name of a package of parl:"
                    " rename it, or import parl first"
                )
    finally:
        sys.path.remove(ROOT)


def here() -> str:
    """The current folder; empty if it no longer exists."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def append(folders: Iterable[str]) -> None:
    """Put folders at the end of the module search path."""
    sys.path.extend(folder for folder in map(os.path.abspath, folders) if folder not in sys.path)


def worker_environment() -> dict[str, str]:
    """Variables with which a Ray worker finds parl, and through :func:`prepare_worker` the driver's modules."""
    variables = {PATH_VARIABLE: json.dumps([os.path.abspath(folder) for folder in sys.path])}
    if ROOT not in (*site.getsitepackages(), site.getusersitepackages()):  # a checkout, perhaps not installed
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH"))))
    return variables


def prepare_worker() -> None:
    """Called by Ray in each of its workers, before it unpickles anything."""
    append(json.loads(os.environ.get(PATH_VARIABLE, "[]")))
