"""Tasks about facts in dossiers: what makes sub-agents pay is depth x length x width.

A fact of a ``file`` is behind a chain of links that are found one after another (depth); of a ``scan`` every
page has to be opened and read (length). A row of a table so takes several dependent calls and many tokens, and
an agent whose context is bounded can hold some rows, not all.

    deep        a table of facts in files                    long     a table of facts in scans
    deep_list   the same as deep, for a listed group         trail    one such fact: nothing can be split
    two_phase   one of several, found by a fact in its file, names the group that the table is about

Costs in critical steps of a row: two calls to its profile (search, find), then one for each page. One agent
that calls in parallel needs as many turns as the longest row; sub-agents one to launch and one to answer more.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from envs.base import Gold, Oracle
from envs.world.config import WorldConfig
from envs.world.knowledge import DOSSIER_OF, DOSSIERS, Entity, Group, Knowledge
from envs.world.wording import numbered

PROFILE, ANSWER, LAUNCH = 2, 1, 1  # critical steps: to a profile's lines, to answer, to launch sub-agents
FEWEST = 3  # rows from which sub-agents pay: below, one agent's calls cost fewer tokens than the prompts
_CANDIDATES = (3, 6)  # of the first phase of two_phase

Draft = tuple[str, list[str], Gold, Oracle, int, dict[str, Any]]  # what, attributes, gold, oracle, width, plan
Costs = tuple[int, int, int]  # critical steps: serial, by parallel calls of one agent, by sub-agents


class DeepTasks:
    """Drafts of tasks over a knowledge base with dossiers."""

    def __init__(self, knowledge: Knowledge, config: WorldConfig) -> None:
        self._knowledge, self._config = knowledge, config
        self._entities = list(knowledge.entities.values())
        self._holders: dict[str, list[Entity]] = {}
        for entity in self._entities:
            self._holders.setdefault(entity.kind, []).append(entity)
        self._groups = [group for group in knowledge.groups if not group.chained]
        self._leaders = [e for e in self._entities if e.group]

    def usable(self, family: str) -> bool:
        """Whether this world can ask ``family``."""
        needed = {"deep_list": bool(self._groups), "two_phase": len({e.group for e in self._leaders}) > _CANDIDATES[1]}
        return bool(self._entities and self._entities[0].dossiers) and needed.get(family, True)

    def draft(self, family: str, rng: Random) -> Draft:
        """A task of ``family``."""
        if family == "trail":
            return self._trail(rng)
        attribute = rng.choice(DOSSIERS["scan" if family == "long" else "file"])
        if family == "deep_list":
            return self._members(attribute, rng.choice(self._groups))
        if family == "two_phase":
            return self._two_phase(attribute, rng)
        holders = self._holders[rng.choice(list(self._holders))]
        low, high = self._config.deep_widths
        rows = rng.sample(holders, min(rng.randint(low, high), len(holders)))
        names = [entity.name for entity in rows]
        plan = {"names": names, "attributes": [attribute]}
        oracle = _oracle(_fan_out(rows, attribute), len(rows))
        return numbered(names), [attribute], _gold(rows, attribute, names), oracle, len(rows), plan

    def _trail(self, rng: Random) -> Draft:
        kind = rng.choice(list(DOSSIERS))
        entity, attribute = rng.choice(self._entities), rng.choice(DOSSIERS[kind])
        steps = _calls(entity, attribute) + ANSWER
        gold = Gold(kind="exact", answers=(entity.fact(attribute),))
        oracle = Oracle(serial_steps=steps, direct_steps=steps, parallel_steps=steps, width=0)
        plan = {"names": [entity.name], "hops": [], "attributes": [attribute]}
        return entity.name, [attribute], gold, oracle, 1, plan

    def _members(self, attribute: str, group: Group) -> Draft:
        rows = [self._knowledge.entities[name] for name in group.members]
        oracle = _oracle(_fan_out(rows, attribute), len(rows), before=PROFILE)
        plan = {"group": group.name, "attributes": [attribute]}
        return group.name, [attribute], _gold(rows, attribute, group.members), oracle, len(rows), plan

    def _two_phase(self, attribute: str, rng: Random) -> Draft:
        """Candidates of different groups; one has the fact asked for, and its group's members are the rows."""
        by_group: dict[str | None, Entity] = {}
        for entity in rng.sample(self._leaders, len(self._leaders)):
            by_group.setdefault(entity.group, entity)
        known = next(other for other in DOSSIERS["file"] if other != attribute)
        candidates = rng.sample(list(by_group.values()), rng.randint(*_CANDIDATES))
        chosen = candidates[rng.randrange(len(candidates))]
        wanted = chosen.fact(known)
        candidates = [e for e in candidates if e is chosen or e.fact(known) != wanted]
        group = next(group for group in self._groups if group.name == chosen.group)
        rows = [self._knowledge.entities[name] for name in group.members]
        names = [entity.name for entity in candidates]
        first, second = _fan_out(candidates, known), _fan_out(rows, attribute)
        costs = tuple(a + b for a, b in zip(first, second, strict=True))
        oracle = _oracle(costs, len(candidates) + len(rows), before=2 * PROFILE)  # the chosen one's group, its page
        plan = {"candidates": names, "known": known, "wanted": wanted, "attributes": [attribute]}
        what = f"{known} {wanted} among {numbered(names)}"
        return what, [attribute], _gold(rows, attribute, group.members), oracle, len(rows), plan


def _calls(entity: Entity, attribute: str) -> int:
    return PROFILE + entity.dossiers[DOSSIER_OF[attribute]].pages


def _fan_out(rows: Sequence[Entity], attribute: str) -> Costs:
    """Costs to learn ``attribute`` of all rows."""
    calls = [_calls(entity, attribute) for entity in rows]
    return sum(calls), max(calls), LAUNCH + max(calls) + ANSWER


def _oracle(costs: Sequence[int], width: int, before: int = 0) -> Oracle:
    serial, direct, parallel = (before + cost + ANSWER for cost in costs)
    pays = width >= FEWEST
    return Oracle(
        serial_steps=serial,
        direct_steps=direct,
        parallel_steps=min(parallel, serial),
        width=width if pays else 0,
    )


def _gold(rows: Sequence[Entity], attribute: str, listed: Sequence[str]) -> Gold:
    aliases = {f"{i}. {name}": name for i, name in enumerate(listed, 1)}
    return Gold(
        kind="table",
        columns=("name", attribute),
        unique_columns=("name",),
        rows=tuple((entity.name, entity.fact(attribute)) for entity in rows),
        aliases=aliases,
    )
