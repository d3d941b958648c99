"""The world's teacher: its words, drills in reading and in going through lists, and demonstrations.

Most demonstrations are serial, some spawn where it pays, some where it does not: the cold start must not
decide when to spawn.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Literal

from envs.base import Task
from envs.teacher import Action, Demonstration, History, Part, Seen, Words
from envs.world.config import PICTURE, WorldConfig
from envs.world.corpus import agenda, corpus_texts, reading_pieces
from envs.world.knowledge import (
    ATTRIBUTES,
    CATEGORIES,
    DOSSIER_OF,
    DOSSIERS,
    GROUP_SIZES,
    NOTES,
    RELATIONS,
    Knowledge,
    draw_value,
)
from envs.world.lexicon import FIRSTS, SECONDS, names_of_split
from envs.world.reference import CREATE, WORKER, ReferencePolicy, subagent_act
from envs.world.site.documents import page_ids
from envs.world.site.pictures import picture_act, picture_texts
from envs.world.tasks import TaskStream
from envs.world.wording import (
    ARCHIVE,
    answer_table,
    asking,
    choice_query,
    fact_line,
    hit_line,
    hop_query,
    items,
    numbered,
    path_words,
    question,
)

Style = Literal["serial", "direct", "parallel", "partial", "wrong"]
FORMS = ("table", "assign", "search")  # what goes through a list, equally often
_DEEP_FORMS = (*FORMS, *["links", "choice"] * 3, "again", "hops", "hops")
_LINKED = 8  # rows of a drill in links
_CALLS = (  # recurring parts of a call that should cost one or two tokens
    {"query": ""},
    {"url": ""},
    {"url": "", "pattern": ""},
    {"agent": WORKER, "prompt": ""},
    CREATE[1],
)
_DEEP_CALLS = ({"url": ""}, {"url": "", "pattern": "|"})  # the same of dossiers' pages
_STREAM = 10_000  # added to the cold start's seed, so that its tasks differ from those of training
_TEXTS, _PICTURES = 8000, 1000  # samples for the vocabulary


class WorldTeacher:
    """Shows how the world's tasks are solved. ``knowledge``: the facts of the train split."""

    def __init__(self, config: WorldConfig, knowledge: Knowledge) -> None:
        self.config, self._knowledge = config, knowledge
        self._longest = max(config.widths[1], config.deep_widths[1] if config.deep else 2, 2)
        self._streams: dict[int, TaskStream] = {}

    def words(self, seed: int) -> Words:
        """Text of the world. A label or value must be one token everywhere, or a small policy needs a
        dictionary.
        """
        deep = self.config.deep
        values = [value for values in CATEGORIES.values() for value in values]
        values += [*DOSSIERS, *DOSSIER_OF, *NOTES, "group"] if deep else []
        return Words(
            texts=corpus_texts(seed, _TEXTS, deep=deep),
            alone=picture_texts(Random(seed), _PICTURES) if self.config.pictures else (),
            atoms=[*FIRSTS, *SECONDS],
            values=[*values, *ATTRIBUTES, *RELATIONS, "next", "first", "members", "none"],
            items=min(max(self._longest, GROUP_SIZES[1]), 40),
            calls=_CALLS,
        )

    def exercise(self, rng: Random) -> list[Part]:
        """Reading values out of facts, or going through a list, of any length (see docs/cold_start.md)."""
        count = rng.randint(2, self._longest)
        if rng.random() < 0.5:
            return [Part(pieces=reading_pieces(rng, count, self._longest))]
        return agenda_parts(rng, count, self._longest, rng.choice(_DEEP_FORMS if self.config.deep else FORMS))

    def demonstration(self, index: int, *, seed: int, parallel: float, wrong: float) -> Demonstration:
        """Demonstration ``index``: one of the stream's tasks, solved in a drawn style."""
        if seed not in self._streams:
            self._streams[seed] = TaskStream(self._knowledge, self.config, seed + _STREAM)
        task = self._streams[seed][index]
        rng = Random(f"{seed}:{index}")
        style = draw_style(task, rng, parallel=parallel, wrong=wrong)
        if style == "serial" and self.config.direct and rng.random() < self.config.direct:
            style = "direct"
        policy = ReferencePolicy(style=style, seed=rng.randrange(2**31), named=True)
        # a demonstration without any spawning also teaches the single agent's tool list
        spawning = style not in ("serial", "direct") or rng.random() < 0.6
        act = partial(_see, task) if task.family == PICTURE else partial(_act, policy, task)
        return Demonstration(task=task, spawning=spawning, orchestrator=act, subagent=subagent_act)


def _see(task: Task, history: History, seen: Seen) -> Action:
    """Picture tasks need ``seen``: text histories do not contain pictures."""
    return picture_act(task, seen)


def _act(policy: ReferencePolicy, task: Task, history: History, seen: Seen) -> Action:
    return policy.act(task, history)


def draw_style(task: Task, rng: Random, *, parallel: float, wrong: float) -> Style:
    """The style of the demonstration of ``task``."""
    useful = task.oracle is not None and task.oracle.width > 0
    roll = rng.random()
    if useful:
        spawning = "parallel" if roll < parallel else "partial"
        return spawning if roll < parallel + 0.05 else "serial"
    return "wrong" if roll < wrong else "serial"


def agenda_parts(rng: Random, count: int, longest: int, form: str) -> list[Part]:
    """A question about a numbered list of ``count`` names, then what goes through it.

    ``form``: a ``table``; or calls, in one turn (``assign``) or in many, each followed by a fact
    (``search``). Only the next number and its name are trained. All start anywhere in the list, the calls
    with any number, and the list's numbers are at most ``longest``.
    """
    text, label, rows = agenda(rng, count, longest)
    todo, index = rows[rng.randrange(count - 1) :], rng.randrange(24)
    wanted = [todo[0][1], *(item for item, _, _ in todo[1:])]  # any number may be the first
    prompts = [asking([label], item) for item, _, _ in todo]
    parts = [Part(said=text)]
    if form == "links":
        return parts + _links(rng, rows, label)
    if form == "choice":
        return _choice(rng, count)
    if form == "again":
        return _again(rng, count)
    if form == "hops":
        return _hops(rng)
    if form == "table":
        table = answer_table(("name", label), [(item, value) for item, _, value in todo])
        return [*parts, Part(said=table, wanted=wanted[1:])]
    if form == "assign":
        calls = [(index + i, "assign_task", {"agent": WORKER, "prompt": prompt}) for i, prompt in enumerate(prompts)]
        return [*parts, Part(calls=calls, wanted=wanted)]
    for i, (_, name, value) in enumerate(todo):
        parts.append(Part(calls=[(index + i, "search", {"query": prompts[i]})], wanted=wanted[i : i + 1]))
        parts.append(Part(results=[(index + i, "search", fact_line(name, label, value))]))
    return parts


def _links(rng: Random, rows: list[tuple[str, str, str]], label: str) -> list[Part]:
    """Results that name a page for each row, and the calls that open or search these pages, in the same order.

    Profiles come with outdated pages; files and scans after the profiles that link to them, and beside rows whose fact
    is known already.
    """
    kind, index = rng.choice(list(DOSSIERS)), rng.randrange(12)
    rows = rows[:_LINKED]
    profiles = dict(zip(rows, page_ids(len(rows), rng), strict=True))
    found = []
    for row in rows:
        hits = [hit_line(row[1], profiles[row])]
        if rng.random() < 0.5:
            hits.insert(rng.randrange(2), hit_line(row[1] + ARCHIVE, page_ids(1, rng)[0]))
        found.append("\n".join(hits))
    parts = [Part(results=[(index + i, "search", text) for i, text in enumerate(found)])]
    index += len(rows)
    if rng.random() < 0.5:
        return [*parts, _opened(profiles, "find_in_page", rng.choice((label, f"{label}|{kind}")), index)]
    opened = _opened(profiles, "find_in_page", f"{label}|{kind}", index)
    linked = dict(zip(rows, page_ids(len(rows), rng, kind[0]), strict=True))
    known = set(rows) if len(rows) > 1 and rng.random() < 0.5 else set()
    known = {row for row in known if rng.random() < 0.3} - {rng.choice(rows)}
    lines = [fact_line(row[1], label, row[2]) if row in known else fact_line(row[1], kind, linked[row]) for row in rows]
    parts += [opened, Part(results=[(index + i, "find_in_page", line) for i, line in enumerate(lines)])]
    left = {row: page for row, page in linked.items() if row not in known}
    tool, pattern = ("open_page", None) if kind == "scan" else ("find_in_page", f"{label}|{kind}")
    return [*parts, _opened(left, tool, pattern, index + len(rows))]


def _opened(pages: dict[tuple[str, str, str], str], tool: str, pattern: str | None, index: int) -> Part:
    """One turn that opens, or searches, each row's page."""
    urls = [hit_line(item, page) for (item, _, _), page in pages.items()]
    rest = {} if pattern is None else {"pattern": pattern}
    return Part(calls=[(index + i, tool, {"url": url, **rest}) for i, url in enumerate(urls)], wanted=urls)


def _choice(rng: Random, count: int) -> list[Part]:
    """A question about the one of several that has a given value, what each has, and the call that goes on with it."""
    names = rng.sample(names_of_split("train"), min(count, 6))
    known, label = rng.sample(DOSSIERS["file"], 2)
    values = [str(value) for value in rng.sample(range(10, 100), len(names))]
    chosen, index = rng.randrange(len(names)), rng.randrange(12)
    what = f"{known} {values[chosen]} among {numbered(names)}"
    facts = [fact_line(name, known, value) for name, value in zip(names, values, strict=True)]
    query = choice_query(list(zip(items(names), values, strict=True))[: chosen + 1])
    call = (index + len(names), "search", {"query": query})
    return [
        Part(said=question("two_phase", "train", [label], what, rng)),
        Part(results=[(index + i, "assign_task", fact) for i, fact in enumerate(facts)]),
        Part(calls=[call], wanted=[f'{query}"}}']),
    ]


def _again(rng: Random, count: int) -> list[Part]:
    """Facts of several names, then other facts of some of these and of others, and the table of the second."""
    names = rng.sample(names_of_split("train"), 2 * min(count, 6))
    known, label = rng.sample(DOSSIERS["file"], 2)
    first = names[: len(names) // 2]
    listed = rng.sample(names, len(first))
    values = {name: str(rng.randint(10, 99)) for name in listed}
    index = rng.randrange(12)
    told = [fact_line(name, known, str(rng.randint(10, 99))) for name in first]
    asked = [fact_line(name, label, values[name]) for name in listed]
    rows = [(item, values[name]) for item, name in zip(items(listed), listed, strict=True)]
    return [
        Part(results=[(index + i, "assign_task", fact) for i, fact in enumerate(told)]),
        Part(said=question("wide", "train", [label], numbered(listed), rng)),
        Part(results=[(index + len(told) + i, "assign_task", fact) for i, fact in enumerate(asked)]),
        Part(said=answer_table(("name", label), rows), wanted=[f"{item} | {value}" for item, value in rows]),
    ]


def _hops(rng: Random) -> list[Part]:
    """A question about a chain, and its queries hop by hop."""
    names = rng.sample(names_of_split("train"), 6)
    hops = [rng.choice(RELATIONS) for _ in range(rng.randint(2, 5))]
    label, index = rng.choice(ATTRIBUTES), rng.randrange(12)
    parts = [Part(said=question("chain", "train", [label], path_words(names[0], hops), rng))]
    for number, hop in enumerate((*hops, label), 1):
        query = hop_query(number, hop, names[number - 1])
        parts.append(Part(calls=[(index, "search", {"query": query})], wanted=[query]))
        value = names[number] if number <= len(hops) else draw_value(label, rng)
        parts.append(Part(results=[(index, "find_in_page", fact_line(names[number - 1], hop, value))]))
        index += 1
    return parts
