"""What an environment teaches a policy from scratch: words, exercises and demonstrations.

A :class:`Teacher` knows its environment, the cold start (``parl/cold_start``) the policy, its vocabulary and
chat format. They exchange plain texts and tool calls. Without a teacher a run starts from ``model.init``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from envs.base import Task

Asked = tuple[str, dict[str, Any]]  # a tool and its arguments
History = Sequence[
    Sequence[tuple[str, dict[str, Any], str]]
]  # by turn: (tool, arguments, result's text), in call order
Seen = Sequence[tuple[int, bytes]]  # pictures of an agent's context: position of the first placeholder, PNG file
Action = list[Asked] | str  # tool calls of one turn, or the final answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Training text of a vocabulary.

    ``texts`` occur in conversations and come with the markup of calls and results, ``alone`` without.
    ``atoms`` (syllables of names) are never split or merged; ``values`` and list numbers up to ``items`` are
    one token each. ``calls`` are recurring arguments.
    """

    texts: Iterable[str]
    alone: Iterable[str] = ()
    atoms: Sequence[str] = ()
    values: Sequence[str] = ()
    items: int = 0
    calls: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of an exercise: exactly one of ``pieces``, ``said``, ``calls`` and ``results`` is given.

    ``pieces``: texts with loss weights. ``said``: a text. ``calls``: (number, tool, arguments) of one turn in
    the chat format. ``results``: (number, tool, text) of results in it. Of the last three only tokens of
    ``wanted``, texts that occur in them, are trained.
    """

    pieces: Sequence[tuple[str, float]] = ()
    said: str = ""
    calls: Sequence[tuple[int, str, dict[str, Any]]] = ()
    results: Sequence[tuple[int, str, str]] = ()
    wanted: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A task and its agents' policies: ``orchestrator(history, pictures)`` and ``subagent(prompt, history)``.

    ``spawning``: whether the orchestrator has the spawning tools.
    """

    task: Task
    spawning: bool
    orchestrator: Callable[[History, Seen], Action]
    subagent: Callable[[str, History], Action]


class Teacher(Protocol):
    """Shows how tasks are solved; every method is a function of its arguments."""

    def words(self, seed: int) -> Words:
        """Training text of the vocabulary."""
        ...

    def exercise(self, rng: Random) -> list[Part]:
        """A short exercise drawn by ``rng``, one row of the cold start, for skills rare in demonstrations."""
        ...

    def demonstration(self, index: int, *, seed: int, parallel: float, wrong: float) -> Demonstration:
        """Demonstration ``index``; ``parallel``, ``wrong``: shares that spawn where it pays, and where not."""
        ...
