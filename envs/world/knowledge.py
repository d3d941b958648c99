"""The generated knowledge base: typed entities, their values and relations, and groups of them.

Values are independent of names, so nothing can be answered from a name alone. Everything is a function of
(world seed, split).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from envs.world.config import WorldConfig
from envs.world.lexicon import check_split, draw_names

# ruff: noqa: SIM905 - word lists read better as text
CATEGORIES: dict[str, tuple[str, ...]] = {
    "color": tuple("red blue green white black amber pink gray brown gold teal violet olive coral indigo".split()),
    "metal": tuple(
        "iron tin zinc lead copper nickel cobalt silver steel brass bronze chrome titanium mercury platinum".split()
    ),
    "climate": tuple("dry wet mild cold hot humid polar windy foggy sunny rainy stormy snowy arid tropical".split()),
    "shape": tuple(
        "round flat square oval cubic long wide narrow curved spiral conical hollow ring cross disc".split()
    ),
    "crop": tuple("wheat rice corn oats barley rye beans peas grapes apples plums figs dates hops cotton".split()),
}
INTEGERS = ("mass", "age", "height", "depth", "speed")  # 10 .. 99
YEARS = ("year", "built")  # 1100 .. 2099
ATTRIBUTES = (*CATEGORIES, *INTEGERS, *YEARS)
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, str]]] = {  # kind -> attributes, relations
    "city": (("age", "climate", "crop", "built"), ("rival", "twin")),
    "ship": (("mass", "speed", "color", "built"), ("ally", "rival")),
    "mine": (("depth", "metal", "year"), ("twin", "guide")),
    "star": (("mass", "age", "color", "shape"), ("ally", "guide")),
    "tower": (("height", "metal", "shape", "built"), ("patron", "rival")),
    "river": (("depth", "speed", "climate"), ("ally", "heir")),
    "beast": (("mass", "height", "color", "speed"), ("heir", "twin")),
    "farm": (("age", "crop", "year"), ("patron", "guide")),
}
RELATIONS = tuple(sorted({relation for _, pair in KINDS.values() for relation in pair}))
GROUP_SIZES = (2, 10)
DOSSIERS = {"file": ("toll", "rank"), "scan": ("fee",)}  # kind -> its attributes, all 10 .. 99
NOTES = ("note", "visit", "claim")  # what else the pages of a file say
DOSSIER_OF = {attribute: kind for kind, attributes in DOSSIERS.items() for attribute in attributes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Dossier:
    """Pages about an entity, each linked from the one before, the first from the profile; the last has the values.

    ``pages``: their number. Only the first link is found by a search.
    """

    values: dict[str, str]
    pages: int


@dataclass(slots=True, kw_only=True)
class Entity:
    """One thing of the world. ``archive``: values of its outdated page, None without one.

    ``dossiers``: by kind; only in worlds that ask for them. ``group``: the listed group that its profile names.
    """

    name: str
    kind: str
    values: dict[str, str]
    relations: dict[str, str] = field(default_factory=dict)
    alias: str | None = None
    archive: dict[str, str] | None = None
    archive_first: bool = False  # the outdated page ranks before the profile
    next: str | None = None  # successor in a chained group, "none" at its end
    dossiers: dict[str, Dossier] = field(default_factory=dict)
    group: str | None = None

    def fact(self, attribute: str) -> str:
        """The value of ``attribute``, of the profile or of a dossier."""
        kind = DOSSIER_OF.get(attribute)
        return self.values[attribute] if kind is None else self.dossiers[kind].values[attribute]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A named set of entities of one kind: listed on one page, or linked one to the next."""

    name: str
    kind: str
    members: tuple[str, ...]
    chained: bool


@dataclass(slots=True, kw_only=True)
class Knowledge:
    """All facts of one split of one world."""

    split: str
    seed: int
    entities: dict[str, Entity]
    groups: list[Group] = field(default_factory=list)
    lines: int = 8  # of a page of a dossier


def draw_value(attribute: str, rng: Random) -> str:
    """A random value of ``attribute``: a category word, 10..99, or a year of four digits."""
    if attribute in CATEGORIES:
        return rng.choice(CATEGORIES[attribute])
    return str(rng.randint(1100, 2099) if attribute in YEARS else rng.randint(10, 99))


def other_value(attribute: str, value: str, rng: Random) -> str:
    """A random value of ``attribute`` other than ``value``."""
    while (other := draw_value(attribute, rng)) == value:
        pass
    return other


def split_size(config: WorldConfig, split: str) -> int:
    """Entities of ``split``: ``config.entities`` for train, a quarter (at least 4) for the others."""
    return config.entities if check_split(split) == "train" else max(4, config.entities // 4)


def build_knowledge(split: str, config: WorldConfig) -> Knowledge:
    """The knowledge base of ``split``; ValueError for an unknown split."""
    count = split_size(config, split)
    rng = Random(f"world:{config.seed}:{split}")
    names = draw_names(split, rng)
    kinds = list(KINDS)[: max(1, min(len(KINDS), count // 40))]  # a small world still fills wide tables of one kind
    entities: dict[str, Entity] = {}
    for i in range(count):
        kind = kinds[i % len(kinds)]
        name = next(names)
        entities[name] = Entity(name=name, kind=kind, values={a: draw_value(a, rng) for a in KINDS[kind][0]})
    _relate(list(entities.values()), rng)
    _blur(list(entities.values()), names, config, rng)
    groups = _groups(entities, kinds, names, rng)
    knowledge = Knowledge(split=split, seed=config.seed, entities=entities, groups=groups, lines=config.lines)
    if config.deep:
        _file(knowledge, config)
    return knowledge


def _file(knowledge: Knowledge, config: WorldConfig) -> None:
    """Dossiers of every entity, and the group that its profile names; draws of their own, so all else stays."""
    rng = Random(f"dossiers:{config.seed}:{knowledge.split}")
    for entity in knowledge.entities.values():
        for kind, attributes in DOSSIERS.items():
            low, high = config.depth if kind == "file" else config.length
            values = {attribute: str(rng.randint(10, 99)) for attribute in attributes}
            entity.dossiers[kind] = Dossier(values=values, pages=rng.randint(low, high))
    for group in knowledge.groups:
        for member in () if group.chained else group.members:
            knowledge.entities[member].group = knowledge.entities[member].group or group.name


def _relate(entities: list[Entity], rng: Random) -> None:
    for entity in entities:
        for relation in KINDS[entity.kind][1]:
            taken = {entity.name, *entity.relations.values()}
            if len(entities) > len(taken):
                while (target := rng.choice(entities).name) in taken:
                    pass
                entity.relations[relation] = target


def _blur(entities: list[Entity], names: Iterator[str], config: WorldConfig, rng: Random) -> None:
    """Outdated pages and aliases; one draw per entity whatever the shares, so a share changes nothing else."""
    for entity in entities:
        draws = rng.random(), rng.random(), rng.random()
        outdated = {a: other_value(a, value, rng) for a, value in entity.values.items()}
        if draws[0] < config.distractors:
            entity.archive, entity.archive_first = outdated, draws[1] < 0.25
        if draws[2] < config.aliases:
            entity.alias = next(names)


def _groups(entities: dict[str, Entity], kinds: list[str], names: Iterator[str], rng: Random) -> list[Group]:
    """Equally many chained and listed groups, of all sizes; an entity is in at most one chain."""
    of_kind = {kind: [e.name for e in entities.values() if e.kind == kind] for kind in kinds}
    unchained = {kind: rng.sample(members, len(members)) for kind, members in of_kind.items()}
    low, high = GROUP_SIZES
    groups: list[Group] = []
    for i in range(max(2, len(entities) // 16)):
        kind = kinds[i % len(kinds)]
        size = low + i % (high - low + 1)
        if len(of_kind[kind]) >= size:
            members = tuple(rng.sample(of_kind[kind], size))
            groups.append(Group(name=next(names), kind=kind, members=members, chained=False))
        if len(unchained[kind]) >= size:
            members = tuple(unchained[kind].pop() for _ in range(size))
            groups.append(Group(name=next(names), kind=kind, members=members, chained=True))
            for member, successor in zip(members, (*members[1:], "none"), strict=True):
                entities[member].next = successor
    return groups
