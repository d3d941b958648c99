"""Scores by a user's function, ``rewards.function: package.module:score``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, SupportsFloat

from envs.base import Score
from envs.named import named
from envs.plugs.threads import in_thread
from rollouts.episode import Episode

KEY = "rewards.function"
_SCORE, _SUCCESS = "score", "success"


def score_function(name: str) -> Any:
    """The function ``name``; ValueError for what cannot be called with an episode."""
    found = named(name, KEY)
    if not callable(found) or inspect.isclass(found):
        raise ValueError(f'{KEY} = "{name}": is {type(found).__name__}, not a function')
    try:
        inspect.signature(found).bind(None)
    except TypeError as error:
        raise ValueError(f'{KEY} = "{name}": must take the episode alone: def score(episode) ({error})') from None
    return found


async def by_function(name: str, episode: Episode, low: float, high: float) -> Score:
    """Call it, in a thread unless it is async; ValueError for a result that is no score in [low, high]."""
    function = score_function(name)
    if inspect.iscoroutinefunction(function):
        result = await function(episode)
    else:
        result = await in_thread(function, episode)
        result = await result if inspect.isawaitable(result) else result
    return as_score(result, low, high, f'{KEY} = "{name}"')


def as_score(result: Any, low: float, high: float, source: str) -> Score:
    """A number, named numbers with a ``score`` (and a ``success``), or a Score; ValueError otherwise."""
    if isinstance(result, Score):
        return result
    if isinstance(result, Mapping):
        if _SCORE not in result:
            raise ValueError(f"{source}: named parts need one called {_SCORE}, not only {', '.join(map(str, result))}")
        parts = {str(name): _number(value, source) for name, value in result.items() if name not in (_SCORE, _SUCCESS)}
        success = result.get(_SUCCESS)
        value = _number(result[_SCORE], source)
        return Score(value=value, success=None if success is None else bool(success), parts=parts, low=low, high=high)
    return Score(value=_number(result, source), low=low, high=high)


def _number(value: Any, source: str) -> float:
    if not isinstance(value, SupportsFloat):
        raise ValueError(f"{source}: returned {value!r:.80}; return a number, named numbers, or an envs.base.Score")
    return float(value)
