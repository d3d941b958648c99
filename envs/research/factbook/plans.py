"""How a question is solved: which pages it takes, level by level, and what that costs.

A plan is a set of rows. A row starts at a name, follows hops (the largest export partner, the author, ...), each read
from a page, and ends with values. Everything at one level can be looked up at once, nothing of the next before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from envs.base import Oracle
from envs.research.factbook.facts import BORDER, BORN, LINES, SECTIONS
from envs.research.factbook.fields import BY_LABEL
from envs.research.site import MAX_QUERIES

ANSWER = LAUNCH = SEARCH = READ = 1  # critical steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``starts``; or the countries that border ``members_of``. ``hops`` of each row, then ``labels`` at its end.

    ``best``: only the row where this label is ``most`` counts, and ``labels`` are asked of it alone. ``table``: a
    row each, hops' names among the columns; else the single value.
    """

    starts: tuple[str, ...] = ()
    members_of: str = ""
    hops: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    best: str = ""
    most: str = "highest"
    table: bool = True

    def to_dict(self) -> dict[str, Any]:
        """For ``Task.plan``."""
        return asdict(self)

    @classmethod
    def of(cls, plan: dict[str, Any]) -> Plan:
        """Inverse of :meth:`to_dict`."""
        lists = {name: tuple(plan[name]) for name in ("starts", "hops", "labels")}
        return cls(**{**plan, **lists})

    @property
    def row_labels(self) -> tuple[str, ...]:
        """What is read of every row."""
        return (self.best,) if self.best else self.labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """A page to read: its title, what to search for it, and the words to find in it; without words all is read."""

    title: str
    query: str
    words: str = ""


def hop_need(name: str, hop: str) -> Need:
    """Where the next name of ``hop`` is read."""
    if hop not in LINES:
        return Need(title=name, query=name)
    return Need(title=f"{name}: {SECTIONS[hop]}", query=f"{name} {LINES[hop]}", words=LINES[hop])


def label_needs(name: str, labels: Sequence[str]) -> list[Need]:
    """Where values of ``name`` are read: one page for all labels of a section."""
    if tuple(labels) == (BORN,):
        return [Need(title=name, query=name)]
    sections: dict[str, list[str]] = {}
    for label in labels:
        sections.setdefault(BY_LABEL[label].section, []).append(label)
    return [
        Need(title=f"{name}: {section}", query=f"{name} {', '.join(asked)}", words="|".join(asked))
        for section, asked in sections.items()
    ]


Next = Callable[[str, str], str]  # (name, hop) -> the next name


def levels(plan: Plan, start: str, follow: Next) -> list[list[Need]]:
    """The needs of one row, level by level."""
    found, name = [], start
    for hop in plan.hops:
        found.append([hop_need(name, hop)])
        name = follow(name, hop)
    return [*found, label_needs(name, plan.row_labels)]


def oracle(plan: Plan, starts: Sequence[str], follow: Next, winner: str = "") -> Oracle:
    """Costs of the plan in critical steps: a call a turn, sub-agents for the rows, and all calls of a level in a turn.

    A search takes up to eight queries. ``winner``: the row that a comparison finds.
    """
    rows = [levels(plan, start, follow) for start in starts]
    before = [[hop_need(plan.members_of, BORDER)]] if plan.members_of else []
    after = [label_needs(winner, plan.labels)] if plan.best else []
    shared = [list(dict.fromkeys(need for row in rows for need in row[depth])) for depth in range(len(rows[0]))]
    serial = sum(map(_serial, [*before, *shared, *after])) + ANSWER
    direct = (SEARCH + READ) * len([*before, *shared, *after]) + ANSWER
    longest = max(sum(map(_serial, row)) for row in rows) + ANSWER
    parallel = sum(map(_serial, [*before, *after])) + LAUNCH + longest + ANSWER
    pays = parallel < serial and len(rows) > 1
    return Oracle(
        serial_steps=serial,
        parallel_steps=parallel if pays else serial,
        width=len(rows) if pays else 0,
        direct_steps=min(direct, serial),
    )


def _serial(needs: Sequence[Need]) -> int:
    return math.ceil(len({need.title for need in needs}) / MAX_QUERIES) * SEARCH + len(needs) * READ
