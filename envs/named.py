"""Python objects by name, as configurations write them: ``package.module`` or ``package.module:name``."""

from __future__ import annotations

import difflib
import importlib
from typing import Any


def named(name: str, key: str) -> Any:
    """The module ``package.module``, or the object ``package.module:name``; imports it.

    ValueError with ``key``, the reason and the nearest name; an error of the module itself is named.
    """
    module, _, attribute = name.partition(":")
    parts = [*module.split("."), *(attribute.split(".") if ":" in name else ())]
    if not all(part.isidentifier() for part in parts):
        raise ValueError(f'{key} = "{name}": write package.module:name')
    try:
        found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            why = f"there is no module {error.name}: is its folder on PYTHONPATH, or the working directory?"
            raise ValueError(f'{key} = "{name}": {why}') from None
        raise ValueError(f'{key} = "{name}": {module} cannot be imported: {error}') from error
    except Exception as error:
        raise ValueError(f'{key} = "{name}": {module} cannot be imported: {type(error).__name__}: {error}') from error
    for part in attribute.split(".") if attribute else ():
        if not hasattr(found, part):
            public = [other for other, value in vars(found).items() if other[0] != "_" and callable(value)]
            close = difflib.get_close_matches(part, public, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f'{key} = "{name}": {getattr(found, "__name__", module)} has no {part}{hint}')
        found = getattr(found, part)
    return found


def extra(module: str, package: str, key: str) -> Any:
    """The ``module`` of an optional ``package``; ModuleNotFoundError says what to install for ``key``."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        why = f"{key} needs the package {package}: pip install '{package}'"
        raise ModuleNotFoundError(why, name=error.name) from None
