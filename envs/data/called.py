"""Rows of tasks that a user's Python function yields, named ``package.module:function``."""

from __future__ import annotations

import inspect
import re
from functools import lru_cache
from itertools import islice
from typing import Any

from envs.base import Task
from envs.named import named

_CALLED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_KEY = "envs.tasks"
_MOST = 100_000  # rows; a function may yield for ever


def is_called(spec: str) -> bool:
    """Whether ``spec`` names a function."""
    return bool(_CALLED.fullmatch(spec))


@lru_cache(maxsize=8)
def called_rows(spec: str, split: str) -> tuple[Any, ...]:
    """The rows that the function ``spec`` yields, called with ``split`` if it takes one; ValueError.

    A row is an object as in a JSONL file, or a :class:`Task`.
    """
    function: Any = named(spec, _KEY)
    if not inspect.isroutine(function):
        raise ValueError(f'{_KEY} = "{spec}": is {type(function).__name__}, not a function')
    takes = inspect.signature(function).parameters
    try:
        rows = tuple(islice(function(split) if takes else function(), _MOST + 1))
    except Exception as error:
        raise ValueError(f'{_KEY} = "{spec}": it failed: {type(error).__name__}: {error}') from error
    if len(rows) > _MOST:
        raise ValueError(f'{_KEY} = "{spec}": yields more than {_MOST} rows: end it earlier')
    if not rows:
        raise ValueError(f'{_KEY} = "{spec}": yields no row of split {split!r}')
    return tuple(row.to_row() if isinstance(row, Task) else row for row in rows)
