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
from envs.world.knowledge import ATTRIBUTES, CATEGORIES, GROUP_SIZES, RELATIONS, Knowledge
from envs.world.lexicon import FIRSTS, SECONDS
from envs.world.pictures import picture_act, picture_texts
from envs.world.reference import CREATE, WORKER, ReferencePolicy, subagent_act
from envs.world.tasks import TaskStream
from envs.world.wording import answer_table, asking, fact_line

Style = Literal["serial", "parallel", "partial", "wrong"]
FORMS = ("table", "assign", "search")  # what goes through a list, equally often
_CALLS = (  # recurring parts of a call that should cost one or two tokens
    {"query": ""},
    {"url": ""},
    {"url": "", "pattern": ""},
    {"agent": WORKER, "prompt": ""},
    CREATE[1],
)
_STREAM = 10_000  # added to the cold start's seed, so that its tasks differ from those of training
_TEXTS, _PICTURES = 8000, 1000  # samples for the vocabulary


class WorldTeacher:
    """Shows how the world's tasks are solved. ``knowledge``: the facts of the train split."""

    def __init__(self, config: WorldConfig, knowledge: Knowledge) -> None:
        self.config, self._knowledge = config, knowledge
        self._longest = max(config.widths[1], 2)
        self._streams: dict[int, TaskStream] = {}

    def words(self, seed: int) -> Words:
        """Text of the world. A label or value must be one token everywhere, or a small policy needs a
        dictionary.
        """
        values = [value for values in CATEGORIES.values() for value in values]
        return Words(
            texts=corpus_texts(seed, _TEXTS),
            alone=picture_texts(Random(seed), _PICTURES) if self.config.pictures else (),
            atoms=[*FIRSTS, *SECONDS],
            values=[*values, *ATTRIBUTES, *RELATIONS, "next", "first", "members", "none"],
            items=min(max(self.config.widths[1], GROUP_SIZES[1]), 40),
            calls=_CALLS,
        )

    def exercise(self, rng: Random) -> list[Part]:
        """Reading values out of facts, or going through a list, of any length (see docs/cold_start.md)."""
        count = rng.randint(2, self._longest)
        if rng.random() < 0.5:
            return [Part(pieces=reading_pieces(rng, count, self._longest))]
        return agenda_parts(rng, count, self._longest, rng.choice(FORMS))

    def demonstration(self, index: int, *, seed: int, parallel: float, wrong: float) -> Demonstration:
        """Demonstration ``index``: one of the stream's tasks, solved in a drawn style."""
        if seed not in self._streams:
            self._streams[seed] = TaskStream(self._knowledge, self.config, seed + _STREAM)
        task = self._streams[seed][index]
        rng = Random(f"{seed}:{index}")
        style = draw_style(task, rng, parallel=parallel, wrong=wrong)
        policy = ReferencePolicy(style=style, seed=rng.randrange(2**31))
        # a demonstration without any spawning also teaches the single agent's tool list
        spawning = style != "serial" or rng.random() < 0.6
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
