"""Checks an imported episode before it is stored: types, sizes, and that its agents form a tree.

Readers of other formats are lenient (any version, any harness), so their result is checked here once.
FormatError names the field and the value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from envs.base import ErrorKind
from parl.episodes.formats.common import FormatError
from rollouts.episode import Episode, Trace, Turn
from rollouts.store.check import check_agents

_INT32, _INT64 = 2**31, 2**63


def checked(episode: Episode) -> Episode:
    """``episode`` itself. FormatError if a field is invalid."""
    for name in ("answer", "limit", "error"):
        _text(name, getattr(episode, name))
    for name in ("index", "seed", "critical_budget"):
        _whole(name, getattr(episode, name), _INT64)
    _number("wall_s", episode.wall_s)
    _texts("task.", {name: getattr(episode.task, name) for name in ("key", "family", "split", "prompt")})
    for name in ("rewards", "metrics"):
        values = getattr(episode, name)
        if not isinstance(values, dict):
            raise FormatError(f"{name} is {values!r:.80}, not an object of numbers")
        for key, value in values.items():
            _text(f"a name in {name}", key)
            _number(f"{name}.{key}", value)
    for trace in episode.traces:
        _trace(trace)
    try:
        check_agents(episode.traces)
    except ValueError as fault:
        raise FormatError(str(fault)) from None
    return episode


def _trace(trace: Trace) -> None:
    where = f"agent {trace.agent_id!r:.40}: "
    _texts(where, {name: getattr(trace, name) for name in ("agent_id", "name", "prompt", "message", "limit")})
    if trace.parent is not None:
        _text(f"{where}parent", trace.parent)
        _whole(f"{where}parent_turn", trace.parent_turn or 0, _INT32)
    count = len(trace.tokens)
    for name in ("tokens", "versions", "mask", "logprobs"):
        values = getattr(trace, name)
        if len(values) != count:
            raise FormatError(f"{where}{len(values)} {name} for {count} tokens")
    _each(f"{where}a token", trace.tokens, lambda value: type(value) is int and 0 <= value < _INT32)
    _each(f"{where}a policy version", trace.versions, lambda value: type(value) is int and -1 <= value < _INT32)
    _each(f"{where}a mask", trace.mask, lambda value: isinstance(value, bool))
    _each(f"{where}a log-prob", trace.logprobs, lambda value: type(value) in (int, float) and math.isfinite(value))
    for number, turn in enumerate(trace.turns):
        _turn(f"{where}turn {number}: ", turn, count)


def _turn(where: str, turn: Turn, tokens: int) -> None:
    _texts(where, {name: getattr(turn, name) for name in ("content", "malformed", "deadline")})
    for name in ("t_start", "t_model", "t_end"):
        _number(where + name, getattr(turn, name))
    for name in ("start", "end"):
        _whole(where + name, getattr(turn, name), tokens + 1)
    _each(f"{where}a launched agent", turn.spawned, lambda value: isinstance(value, str))
    for call in turn.calls:
        _texts(f"{where}a call's ", {"id": call.id, "name": call.name})
        if not isinstance(call.arguments, dict):
            raise FormatError(f"{where}arguments are {call.arguments!r:.80}, not an object")
    for result in turn.results:
        _text(f"{where}a result", result.text)
        _number(f"{where}latency_s", result.latency_s)
        if not (result.error is None or isinstance(result.error, ErrorKind)):
            raise FormatError(f"{where}a result's error is {result.error!r:.80}")


def _text(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise FormatError(f"{what} is {value!r:.80}, not text")


def _texts(what: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        _text(f"{what}{name}", value)


def _whole(what: str, value: Any, most: int) -> None:
    if type(value) is not int or not -1 <= value < most:
        raise FormatError(f"{what} is {value!r:.80}, not a whole number below {most:,}")


def _number(what: str, value: Any) -> None:
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 1e18:
        raise FormatError(f"{what} is {value!r:.80}, not a finite number")


def _each(what: str, values: Iterable[Any], right: Any) -> None:
    if not isinstance(values, list):
        raise FormatError(f"{what}: {values!r:.80} is no list")
    wrong = next((value for value in values if not right(value)), None)
    if wrong is not None:
        raise FormatError(f"{what} is {wrong!r:.80}")
