"""What an environment may teach a policy that starts from nothing: words, exercises and demonstrations.

A :class:`Teacher` knows its environment; the cold start (``parl/cold_start``) knows the policy, its vocabulary and its
chat format. Between them travel plain texts and tool calls. Without a teacher a run begins with ``model.init``.
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
    """What a vocabulary is trained on.

    ``texts`` stand in conversations and come with the scaffolding of calls and results, ``alone`` without. ``atoms``
    are never cut or joined (syllables of names), ``values`` are one token each, and so are the numbers of lists up to
    ``items``. ``calls`` are arguments that recur.
    """

    texts: Iterable[str]
    alone: Iterable[str] = ()
    atoms: Sequence[str] = ()
    values: Sequence[str] = ()
    items: int = 0
    calls: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of an exercise; of ``pieces``, ``said``, ``calls`` and ``results`` one is given.

    ``pieces``: texts, each with its loss weight. ``said``: a text; ``calls``: (number, tool, arguments) of one turn in
    the chat format; ``results``: (number, tool, text) of results in it. Of these three only the tokens of ``wanted``,
    texts that occur within, are trained.
    """

    pieces: Sequence[tuple[str, float]] = ()
    said: str = ""
    calls: Sequence[tuple[int, str, dict[str, Any]]] = ()
    results: Sequence[tuple[int, str, str]] = ()
    wanted: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A task, and the next turn of its agents: ``orchestrator(history, pictures)`` and ``subagent(prompt, history)``.

    ``spawning``: whether the orchestrator is offered the spawning tools.
    """

    task: Task
    spawning: bool
    orchestrator: Callable[[History, Seen], Action]
    subagent: Callable[[str, History], Action]


class Teacher(Protocol):
    """Who shows how it is done; every method is a function of its arguments alone."""

    def words(self, seed: int) -> Words:
        """What the vocabulary is trained on."""
        ...

    def exercise(self, rng: Random) -> list[Part]:
        """A short practice of what demonstrations teach too thinly, drawn by ``rng``; one row of the cold start."""
        ...

    def demonstration(self, index: int, *, seed: int, parallel: float, wrong: float) -> Demonstration:
        """Demonstration ``index``; ``parallel``, ``wrong``: shares that spawn where it pays, and where it does not."""
        ...
