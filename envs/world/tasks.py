"""Task families over a knowledge base: a stream in which task ``i`` depends on (seed, i), and fixed lists.

Oracles count critical steps (turns): a direct look-up is two (search, open), the answer one, and a stage of
sub-agents one plus the three of the longest sub-agent (search, open, answer).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from envs.base import Gold, Oracle, Task, TaskGroup, task_key
from envs.world.config import DEEP, PICTURE, WorldConfig
from envs.world.deep_tasks import DeepTasks
from envs.world.knowledge import Entity, Group, Knowledge
from envs.world.site.pictures import check_pillow, picture_task
from envs.world.wording import items, numbered, path_words, question

LOOKUP, FAN_OUT, ANSWER = 2, 4, 1  # critical steps
GROUPS = (
    TaskGroup(name="wide", family="wide", title="wide tasks", highlight="item_f1"),
    TaskGroup(
        name="wide_12",
        family="wide",
        least_width=12,
        title="wide tasks of 12 rows and more",
        highlight="critical_steps",
        always=False,
    ),
    TaskGroup(name="list", family="list", title="lists"),
    TaskGroup(name="swap", family="swap", title="linked lists, asked for as lists are"),
    TaskGroup(name="chain", family="chain", highlight="spawn_rate"),
    TaskGroup(name="single_fact", family="single_fact", title="single fact", highlight="spawn_rate"),
    TaskGroup(name="deep", family="deep", title="deep tables", highlight="item_f1", always=False),
    TaskGroup(
        name="deep_8",
        family="deep",
        least_width=8,
        title="deep tables of 8 rows and more",
        highlight="success",
        always=False,
    ),
    TaskGroup(name="long", family="long", title="tables of facts in scans", always=False),
    TaskGroup(name="long_8", family="long", least_width=8, title="the same, of 8 rows and more", always=False),
    TaskGroup(name="deep_list", family="deep_list", title="deep tables of a listed group", always=False),
    TaskGroup(name="two_phase", family="two_phase", title="two phases", always=False),
    TaskGroup(name="trail", family="trail", title="one deep fact", highlight="spawn_rate", always=False),
    TaskGroup(name=PICTURE, family=PICTURE, title="pictures", always=False),
)
_TRIES = 50
_REPEATS = 1000  # draws in a row without a new task, after which a small world counts as exhausted


class TaskStream:
    """Endless tasks of one split; ``stream[i]`` is the same task in every process."""

    def __init__(self, knowledge: Knowledge, config: WorldConfig, seed: int) -> None:
        self._knowledge, self._config, self._seed = knowledge, config, seed
        self._entities = [
            entity for entity in knowledge.entities.values() if entity.values
        ]  # a table may have empty rows
        self._holders: dict[str, list[Entity]] = {}
        for entity in self._entities:
            self._holders.setdefault(entity.kind, []).append(entity)
        self._groups = {chained: _by_size(knowledge.groups, chained) for chained in (False, True)}
        usable = {
            "wide": True,
            "single_fact": True,
            "chain": any(entity.relations for entity in self._entities),
            "list": bool(self._groups[False]),
            "swap": bool(self._groups[True]),
            PICTURE: True,
        }
        self._deep = DeepTasks(knowledge, config)
        usable |= {family: self._deep.usable(family) for family in DEEP}
        self._families = [name for name, weight in config.mix.items() if usable[name] and weight > 0]
        self._weights = [config.mix[name] for name in self._families]
        if not self._families:
            raise ValueError(f"mix={config.mix}: this world can ask none of these families; add wide or single_fact")
        if config.pictures:
            check_pillow()

    def __getitem__(self, index: int) -> Task:
        """Task number ``index`` (from 0)."""
        if index < 0:
            raise IndexError(f"task {index}: a stream starts at 0 and has no end")
        rng = Random(f"tasks:{self._knowledge.split}:{self._seed}:{index}")
        family = rng.choices(self._families, self._weights)[0]
        if family == "wide":
            return self._wide(rng)
        if family == PICTURE:
            return picture_task(self._config.seed, self._knowledge.split, rng)
        if family in DEEP:
            what, attributes, gold, oracle, width, plan = self._deep.draft(family, rng)
            return self._task(family, what, attributes, gold, oracle, width, plan, rng)
        if family in ("list", "swap"):
            return self._members(family, rng)
        return self._path(family, rng)

    def __iter__(self) -> Iterator[Task]:
        index = 0
        while True:
            yield self[index]
            index += 1

    def _wide(self, rng: Random) -> Task:
        attributes, holders = self._columns(rng)
        low, high = self._config.widths
        width = min(rng.randint(low, high), len(holders))
        rows = rng.sample(holders, width)
        names = [self._call(entity, rng) for entity in rows]
        serial = LOOKUP * width + ANSWER
        plan = {"names": names, "attributes": attributes}
        oracle = _oracle(serial, FAN_OUT + ANSWER, width)
        gold = _table(rows, attributes, names)
        return self._task("wide", numbered(names), attributes, gold, oracle, width, plan, rng)

    def _columns(self, rng: Random) -> tuple[list[str], list[Entity]]:
        """Value columns and the entities of one kind that have them all."""
        entity = rng.choice(self._entities)
        low, high = self._config.attributes
        count = min(rng.randint(low, high), len(entity.values))
        attributes = rng.sample(list(entity.values), count)
        return attributes, [e for e in self._holders[entity.kind] if all(a in e.values for a in attributes)]

    def _members(self, family: str, rng: Random) -> Task:
        groups = self._groups[family == "swap"]
        group: Group = rng.choice(groups[rng.choice(list(groups))])
        rows = [self._knowledge.entities[name] for name in group.members]
        attributes = [rng.choice(list(rows[0].values))]
        width = len(rows)
        serial = LOOKUP + LOOKUP * width + ANSWER
        parallel = serial if group.chained else LOOKUP + FAN_OUT + ANSWER
        plan = {"group": group.name, "attributes": attributes}
        oracle = _oracle(serial, parallel, width)
        gold = _table(rows, attributes, group.members)
        return self._task(family, group.name, attributes, gold, oracle, width, plan, rng)

    def _path(self, family: str, rng: Random) -> Task:
        length = rng.randint(*self._config.hops) if family == "chain" else 0
        start, hops, end = self._walk(length, rng)
        attributes = [rng.choice(list(end.values))]
        name = self._call(start, rng)
        serial = LOOKUP * (len(hops) + 1) + ANSWER
        gold = Gold(kind="exact", answers=(end.values[attributes[0]],))
        plan = {"names": [name], "hops": hops, "attributes": attributes}
        what = path_words(name, hops)
        return self._task(family, what, attributes, gold, _oracle(serial, serial, 1), 1, plan, rng)

    def _walk(self, length: int, rng: Random) -> tuple[Entity, list[str], Entity]:
        """A path without repeated entities (a page already read would make the oracle too high)."""
        best: tuple[Entity, list[str], Entity] | None = None
        for _ in range(_TRIES):
            start = end = rng.choice(self._entities)
            seen, hops = {start.name}, []
            while len(hops) < length:
                open_hops = [r for r, target in end.relations.items() if target not in seen]
                if not open_hops:
                    break
                hops.append(rng.choice(open_hops))
                end = self._knowledge.entities[end.relations[hops[-1]]]
                seen.add(end.name)
            if best is None or len(hops) > len(best[1]):
                best = start, hops, end
            if len(hops) == length:
                break
        assert best is not None
        return best

    @staticmethod
    def _call(entity: Entity, rng: Random) -> str:
        return entity.alias if entity.alias and rng.random() < 0.5 else entity.name

    def _task(
        self,
        family: str,
        what: str,
        attributes: Sequence[str],
        gold: Gold,
        oracle: Oracle,
        width: int,
        plan: dict[str, Any],
        rng: Random,
    ) -> Task:
        split = self._knowledge.split
        prompt = question(family, split, attributes, what, rng)
        key = task_key(prompt, [gold.kind, gold.rows, gold.answers])
        return Task(
            key=key, family=family, split=split, prompt=prompt, gold=gold, oracle=oracle, width=width, plan=plan
        )


def generate_tasks(knowledge: Knowledge, split: str, count: int, seed: int, config: WorldConfig) -> list[Task]:
    """``count`` distinct tasks of the stream, in order; fewer in a small world.

    Raises ValueError if ``knowledge`` is of another split.
    """
    if knowledge.split != split:
        raise ValueError(f"knowledge of split {knowledge.split!r} cannot give tasks of {split!r}")
    stream = TaskStream(knowledge, config, seed)
    tasks: dict[str, Task] = {}
    for index in range(20 * count + 100):
        if len(tasks) >= count:
            break
        task = stream[index]
        tasks.setdefault(task.key, task)
    return list(tasks.values())


def distinct_tasks(stream: TaskStream, count: int) -> list[Task]:
    """The first ``count`` distinct tasks of ``stream``, or all that it has.

    It counts as exhausted after ``count`` draws in a row, at least a thousand, without a new task.
    """
    tasks: dict[str, Task] = {}
    repeated = 0
    for task in stream:
        repeated = repeated + 1 if task.key in tasks else 0
        tasks.setdefault(task.key, task)
        if len(tasks) == count or repeated > max(_REPEATS, count):
            break
    return list(tasks.values())


def _by_size(groups: list[Group], chained: bool) -> dict[int, list[Group]]:
    sizes: dict[int, list[Group]] = {}
    for group in groups:
        if group.chained == chained:
            sizes.setdefault(len(group.members), []).append(group)
    return sizes


def _oracle(serial: int, parallel: int, width: int) -> Oracle:
    pays = parallel < serial
    return Oracle(serial_steps=serial, parallel_steps=min(serial, parallel), width=width if pays else 0)


def _table(rows: Sequence[Entity], attributes: Sequence[str], listed: Sequence[str]) -> Gold:
    """The gold table. A row may also be named as in the list of the question or page (``3. Karona``)."""
    numbered_rows = {item: e.name for item, e in zip(items(listed), rows, strict=False)}
    return Gold(
        kind="table",
        columns=("name", *attributes),
        unique_columns=("name",),
        rows=tuple((e.name, *(e.values[a] for a in attributes)) for e in rows),
        aliases={e.alias: e.name for e in rows if e.alias} | numbered_rows,
    )
