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
from envs.world.wording import answer_table, asking, fact_line, hit_line, hop_query, numbered, path_words, question

Style = Literal["serial", "direct", "parallel", "partial", "wrong"]
FORMS = ("table", "assign", "search")  # what goes through a list, equally often
_DEEP_FORMS = (*FORMS, "links", "links", "links", "choice", "hops", "hops")
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
        policy = ReferencePolicy(style=style, seed=rng.randrange(2**31))
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
    """Results that name a page for each row, and the calls that open or search these pages, in the same order."""
    kind = rng.choice(list(DOSSIERS))
    letter, index = rng.choice(("p", kind[0])), rng.randrange(24)
    pages = page_ids(len(rows), rng, letter)
    found = [
        hit_line(name, p) if letter == "p" else fact_line(name, kind, p)
        for (_, name, _), p in zip(rows, pages, strict=True)
    ]
    tool = "search" if letter == "p" else "find_in_page"
    results = [(index + i, tool, line) for i, line in enumerate(found)]
    after = index + len(rows)
    if letter == "s":
        calls = [(after + i, "open_page", {"url": page}) for i, page in enumerate(pages)]
    else:
        pattern = rng.choice((label, f"{label}|{kind}"))
        calls = [(after + i, "find_in_page", {"url": page, "pattern": pattern}) for i, page in enumerate(pages)]
    return [Part(results=results), Part(calls=calls, wanted=[page[1:] for page in pages])]


def _choice(rng: Random, count: int) -> list[Part]:
    """A question about the one of several that has a given value, what each has, and the call that goes on with it."""
    names = rng.sample(names_of_split("train"), min(count, 6))
    known, label = rng.sample(DOSSIERS["file"], 2)
    values = [str(value) for value in rng.sample(range(10, 100), len(names))]
    chosen, index = rng.randrange(len(names)), rng.randrange(12)
    what = f"{known} {values[chosen]} among {numbered(names)}"
    facts = [fact_line(name, known, value) for name, value in zip(names, values, strict=True)]
    results = [(index + i, "assign_task", fact) for i, fact in enumerate(facts)]
    item = f"{chosen + 1}. {names[chosen]}"
    call = (index + len(names), "search", {"query": asking(["group"], item)})
    question_ = question("two_phase", "train", [label], what, rng)
    return [Part(said=question_), Part(results=results), Part(calls=[call], wanted=[item])]


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
