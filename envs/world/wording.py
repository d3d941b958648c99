"""All text formats of the world: pages, hits, questions, delegated prompts, answer tables.

A question is a verb and a connector. Their pairs are disjoint over the splits, while every verb and every
connector occurs in train.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from random import Random

NO_RESULTS = "no results"
NO_MATCH = "no match"
NOT_FOUND = "not found"
ARCHIVE = " archive"

VERBS = ("Find", "Give", "Get", "State", "Show", "Report")
EACH = (  # wide
    "the {a} of each, {x}.", "the {a} for each, {x}.", "the {a} of all, {x}.",
    "the {a} for all, {x}.", "the {a} of these, {x}.", "the {a} for these, {x}.",
)  # fmt: skip
MEMBERS = (  # list and swap
    "the {a} of each in {x}.", "the {a} for each in {x}.", "the {a} of all in {x}.",
    "the {a} for all in {x}.", "the {a} in {x}.", "the {a} within {x}.",
)  # fmt: skip
ONE = (  # chain and single fact; val and test get other pairs, so that train has every beginning after every verb
    "the {a} of {x}.", "the known {a} of {x}.", "{a} of {x}.",
    "the {a} for {x}.", "the known {a} for {x}.", "{a} for {x}.",
)  # fmt: skip
CHOSEN = (  # two_phase
    "the {a} of each in the group with {x}.", "the {a} for each in the group with {x}.",
    "the {a} of all in the group with {x}.", "the {a} for all in the group with {x}.",
    "the {a} in the group with {x}.", "the {a} within the group with {x}.",
)  # fmt: skip
CONNECTORS = {"wide": EACH, "list": MEMBERS, "swap": MEMBERS, "chain": ONE, "single_fact": ONE}
CONNECTORS |= {"deep": EACH, "long": EACH, "deep_list": MEMBERS, "two_phase": CHOSEN, "trail": ONE}


def templates(family: str, split: str) -> list[str]:
    """The question templates of ``family`` in ``split``, with the slots ``{a}`` (attributes) and ``{x}`` (of what)."""
    connectors = CONNECTORS[family]
    wanted = {"val": (0,), "test": (1,), "train": range(2, len(connectors))}[split]
    cells = [(i, j) for i in range(len(VERBS)) for j in range(len(connectors))]
    return [f"{VERBS[i]} {connectors[j]}" for i, j in cells if (j - i) % len(connectors) in wanted]


def question(family: str, split: str, attributes: Sequence[str], what: str, rng: Random) -> str:
    """A question of ``family`` in a random wording of ``split``."""
    return rng.choice(templates(family, split)).format(a=join_words(attributes), x=what)


def path_words(start: str, hops: Sequence[str]) -> str:
    """``Karona's 1. ally, 2. rival``: the entity reached from ``start`` over ``hops``; ``start`` without any.

    The numbers tell the next hop, as in :func:`numbered`.
    """
    return f"{start}'s {numbered(hops)}" if hops else start


def join_words(words: Sequence[str]) -> str:
    """``mass``, ``mass and color``, ``mass, color and age``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def split_words(text: str) -> list[str]:
    """Inverse of :func:`join_words`."""
    return [word for part in text.split(", ") for word in part.split(" and ")]


def numbered(names: Iterable[str], first: int = 1) -> str:
    """``1. Karona, 2. Belmo``: a list, as in questions and pages.

    The number tells the next item; without it a small policy has to find its place in the list. A table may
    name its rows by their items as well (``Gold.aliases``).
    """
    return ", ".join(items(names, first))


def items(names: Iterable[str], first: int = 1) -> list[str]:
    """The names with their numbers: ``1. Karona``, ``2. Belmo``, ..."""
    return [f"{i}. {name}" for i, name in enumerate(names, first)]


def members(names: Sequence[str]) -> str:
    """The text of a group's page: ``2 in all, 1. Karona, 2. Belmo``."""
    return f"{len(names)} in all, {numbered(names)}"


def read_members(text: str) -> list[str]:
    """Inverse of :func:`members`."""
    return [item.partition(". ")[2] for item in text.split(", ")[1:]]


def subject(query: str) -> str:
    """``Karona`` of ``mass, 3. Karona`` or ``3. Karona``; any other text unchanged."""
    return re.sub(r"^(.*, )?[0-9]+\. (?=.)", "", query)


def fact_line(name: str, label: str, value: str) -> str:
    """``mass | Karona | 47``: a record, with the value after the name as in a row of an answer."""
    return f"{label} | {name} | {value}"


def read_fact(text: str, label: str, name: str | None = None) -> str | None:
    """The value of ``label`` in lines of facts about one name, or about ``name``; None if no line states it."""
    records = (line.split(" | ", 2) for line in text.splitlines())
    told = (record for record in records if len(record) == 3 and record[0] == label and name in (None, record[1]))
    return next((record[2] for record in told), None)


def hit_line(title: str, page_id: str) -> str:
    """``Karona: p4217``."""
    return f"{title}: {page_id}"


def page_of(url: str) -> str:
    """The page id in ``p4217``, or in a whole hit, ``Karona: p4217`` or ``3. Karona: p4217``: so a call may say whose
    page it opens.
    """
    return url.strip().rpartition(": ")[2]


def read_hits(text: str) -> list[tuple[str, str]]:
    """(title, page id) of every line of a search result, best first; empty for ``no results`` and errors."""
    pairs = (line.rpartition(": ") for line in text.splitlines())
    return [(title, page) for title, _, page in pairs if title and page[:1] == "p" and page[1:].isdigit()]


def asking(attributes: Sequence[str], item: str) -> str:
    """A sub-agent's prompt, or the query for an item: ``mass, 3. Karona``, or ``mass of Karona``."""
    return f"{join_words(attributes)}{', ' if subject(item) != item else ' of '}{item}"


def hop_query(number: int, label: str, name: str) -> str:
    """The query of a hop, or a sub-agent's prompt: ``2. ally of Karona``. The number comes first, to tell the label."""
    return f"{number}. {label} of {name}"


def read_hop(query: str) -> tuple[str, str] | None:
    """(label, name) of :func:`hop_query`; None for another text."""
    found = re.fullmatch(r"[0-9]+\. (\w+) of (.+)", query)
    return (found[1], found[2]) if found else None


def choice_query(seen: Sequence[tuple[str, str]]) -> str:
    """The query for the group of a candidate that is chosen by its value: ``group, 1. Karona 47, 2. Belmo 73``.

    ``seen``: items and values up to the one that has the value asked for. Going through them, a small policy only has
    to see that the value it just wrote is that of the question; it did not learn to find a name by the value behind it.
    """
    return f"group, {', '.join(f'{item} {value}' for item, value in seen)}"


def read_choice(query: str) -> str | None:
    """The name that :func:`choice_query` ends with; None for another text."""
    found = re.fullmatch(r"group, (?:.*, )?[0-9]+\. (.+) \S+", query)
    return found[1] if found else None


def conclusion(fact: str, value: str) -> str:
    """The answer of a single-value task: the fact that supports it, then the value alone."""
    return f"{fact}\nAnswer: {value}"


def answer_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The answer of a table task: a Markdown table without a fence."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
