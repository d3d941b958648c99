"""Which sub-agents count in ``parallel`` and ``finish``: those that did something for the orchestrator.

Rules, ``rewards.validity``:

``any``   every launched sub-agent counts in ``parallel``, every one that returned a message in ``finish``.
``tool``  OpenPARL's (GuanxingLu/OpenPARL, 2026): a sub-agent is valid if it emitted a result and used at least one
          tool. Its r_parallel counts all of them, its r_finish the valid ones by the launched ones.
``news``  ours. In both terms a sub-agent counts if

          1. it returned a message within its budget;
          2. its prompt is not empty and, but for case, punctuation and order of blanks, is not that of an earlier
             sub-agent that counts;
          3. it used a tool, its message names something of its prompt, and what it says is not what an earlier
             sub-agent that counts has said; or else the orchestrator wrote something of what it says in a later call
             or in the answer. This does not help a sub-agent that used a tool and names something of its prompt if
             an earlier one that counts has said its whole message: it was asked the same in other words;
          4. the orchestrator has not read the same itself: no result of its own calls, up to the turn that launched
             the sub-agent, holds all words of the message and, unless it used a tool and the message names something
             of the prompt, half of those of the prompt.

          "What it says" are the words of its message that are not in its prompt and, if it used no tool, not in the
          question either. "Not found" names nothing; who repeats what it was told says nothing.

``needed``  ours, the default: the rule ``news``, and none counts in a task that sub-agents make no faster by its oracle
          (width 0). Without an oracle it is ``news``.

Words are runs of letters and digits, in any case. All of it is a pure function of the episode with its texts.
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal

from rollouts.episode import Episode, Trace, TraceStatus, Turn

Rule = Literal["any", "tool", "news", "needed"]
Words = frozenset[str]
_WORD = re.compile(r"\w+")
_LAUNCH = "assign_task"


def words(text: str) -> list[str]:
    """The words of ``text``, case-folded, in order."""
    return _WORD.findall(text.casefold())


def counts(episode: Episode, rule: Rule) -> tuple[int, int]:
    """(sub-agents that count in ``parallel``, those that count in ``finish``)."""
    oracle = episode.task.oracle
    if rule == "needed" and oracle is not None and oracle.width == 0:
        return 0, 0
    if rule in ("news", "needed"):
        valid = len(counting(episode))
        return valid, valid
    finished = [trace for trace in episode.subagents if trace.status is TraceStatus.FINISHED]
    return len(episode.subagents), sum(rule == "any" or bool(trace.tool_calls) for trace in finished)


def counting(episode: Episode) -> list[Trace]:
    """The sub-agents that count by the rule ``news``, in the order of their launch."""
    finished = [one for one in episode.subagents if one.status is TraceStatus.FINISHED and words(one.prompt)]
    if not finished:
        return []
    question, later = frozenset(words(episode.task.prompt)), _later(episode)
    readings = _readings(episode.orchestrator.turns)
    asked: set[tuple[str, ...]] = set()
    said: list[Words] = []
    found: list[Trace] = []
    for trace in finished:
        prompt, message = words(trace.prompt), frozenset(words(trace.message))
        news = message.difference(prompt) if trace.tool_calls else message.difference(prompt, question)
        turn = min(trace.parent_turn or 0, len(later) - 1)
        about = bool(trace.tool_calls and news) and not message.isdisjoint(prompt)
        core = frozenset() if about else frozenset(prompt)  # of words around the same question there is no end
        known = any(place <= turn and _holds(unit, message, core) for place, unit in readings)
        again = about and any(message <= other for other in said)
        repeats = not about or any(news <= other for other in said)
        if tuple(prompt) in asked or known or again or (repeats and news.isdisjoint(later[turn])):
            continue
        asked.add(tuple(prompt))
        said.append(message)
        found.append(trace)
    return found


def _holds(unit: Words, message: Words, core: Words) -> bool:
    """Whether one result says all that ``message`` says, and half of the words of ``core``."""
    return message <= unit and 2 * len(unit & core) >= len(core)


def _readings(turns: list[Turn]) -> list[tuple[int, Words]]:
    """(turn, words of call and result) of the orchestrator's own calls."""
    return [
        (number, frozenset([*_argument_words(call.arguments), *words(result.text)]))
        for number, turn in enumerate(turns)
        for call, result in zip(turn.calls, turn.results, strict=False)
        if call.name != _LAUNCH and result.error is None
    ]


def _later(episode: Episode) -> list[Words]:
    """For each turn of the orchestrator the words that it wrote afterwards, in calls and in the answer."""
    written: Words = frozenset(words(episode.answer))
    found: list[Words] = []
    for turn in reversed(episode.orchestrator.turns):
        found.append(written)
        written |= frozenset(word for call in turn.calls for word in _argument_words(call.arguments))
    return found[::-1] or [written]


def _argument_words(arguments: dict[str, Any]) -> list[str]:
    return words(json.dumps(arguments, ensure_ascii=False))
