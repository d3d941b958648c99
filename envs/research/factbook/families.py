"""Questions by family, from the facts: for each split a fixed list, held-out names and values apart from training.

A name that a question starts from belongs to one split. Where questions lead to other names (partners, neighbours),
no value that val or test ask for is asked in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from random import Random

from envs.base import Gold, Task, task_key
from envs.research.factbook.facts import AUTHOR, BORDER, BORN, EXPORT, IMPORT, PLACE, Facts
from envs.research.factbook.fields import BY_LABEL, FIELDS
from envs.research.factbook.plans import Plan, oracle
from envs.research.factbook.reader import amount_of

SHARES = {"wide": 0.3, "deep": 0.22, "list": 0.12, "compare": 0.12, "chain": 0.16, "fact": 0.08}
COUNTS = {"test": 240, "val": 240, "train": 2600}  # in this order: training leaves out what the others ask
_TRIES = 4000
_HOPS = (EXPORT, IMPORT, BORDER)
_THAT = {EXPORT: "its largest export partner", IMPORT: "its largest import partner"}
_THAT |= {BORDER: "the country with which it has its longest land border"}
_AS_WRITTEN = "Write values as the page does, without notes and brackets."
Cell = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A question with the values that it asks for."""

    plan: Plan
    prompt: str
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...]
    cells: frozenset[Cell]
    winner: str = ""


class Families:
    """Draws questions about the names of one split."""

    def __init__(self, facts: Facts, split: str) -> None:
        self.facts, self.split = facts, split
        self.countries = [name for name in facts.countries if split_of(name) == split]
        self.works = [name for name in facts.works if split_of(name) == split]
        self.places = [name for name in facts.places if split_of(name) == split]
        self.people = [name for name in facts.people if split_of(name) == split]
        self.groups = [name for name in self.countries if len(facts.members.get(name, ())) >= 3]

    def draw(self, family: str, rng: Random) -> Draft | None:
        """A question of ``family``; None where what was drawn cannot be asked."""
        families: dict[str, Callable[[Random], Draft | None]] = {
            "wide": self.wide,
            "deep": self.deep,
            "list": self.neighbours,
            "compare": self.compare,
            "chain": self.chain,
            "fact": self.fact,
        }
        return families[family](rng)

    def wide(self, rng: Random) -> Draft | None:
        """Values of some countries."""
        labels = _labels(rng, rng.choice((1, 1, 2, 2, 3)))
        names = self._some(rng, self._having(self.countries, labels), 2, 20)
        if names is None:
            return None
        return self._table(Plan(starts=names, labels=labels), f"Find the {_and(labels)} of each: {'; '.join(names)}.")

    def deep(self, rng: Random) -> Draft | None:
        """Values at the end of hops, from some countries or works."""
        if rng.random() < 0.2:
            names = self._some(rng, self.works, 2, 12)
            if names is None:
                return None
            said = f"Find the author of each, and when the author was born: {'; '.join(names)}."
            plan = Plan(starts=names, hops=(AUTHOR,), labels=(BORN,))
            return self._table(plan, said, "work")
        hops = tuple(rng.choices(_HOPS, k=rng.choice((1, 1, 1, 2))))
        labels = _labels(rng, rng.choice((1, 1, 2)))
        able = [name for name in self.countries if (end := self._end(name, hops)) and self._having([end], labels)]
        names = self._some(rng, able, 2, 12)
        if names is None:
            return None
        path = " and of that country ".join(_THAT[hop] for hop in hops)
        said = f"Find for each {path}, and of the last one the {_and(labels)}: {'; '.join(names)}."
        plan = Plan(starts=names, hops=hops, labels=labels)
        return self._table(plan, said)

    def neighbours(self, rng: Random) -> Draft | None:
        """Values of the neighbours of a country."""
        if not self.groups:
            return None
        whole = rng.choice(self.groups)
        members = tuple(self.facts.members[whole])
        labels = _labels(rng, rng.choice((1, 1, 2)))
        if len(self._having(members, labels)) < len(members):
            return None
        said = f"Find the {_and(labels)} of every country that {whole} borders."
        plan = Plan(starts=members, members_of=whole, labels=labels)
        return self._table(plan, said)

    def compare(self, rng: Random) -> Draft | None:
        """A value of the country that has the most of another."""
        best = rng.choice([field.label for field in FIELDS if field.kind == "number"])
        label = _labels(rng, 1)[0]
        if BY_LABEL[best].section == BY_LABEL[label].section:
            return None
        names = self._some(rng, self._having(self.countries, (best,)), 3, 10)
        if names is None:
            return None
        most = rng.choice(("highest", "lowest"))
        ranked = sorted(names, key=lambda name: self._amount(name, best), reverse=most == "highest")
        winner = ranked[0]
        if self._amount(winner, best) == self._amount(ranked[1], best) or not self._plain(winner, label):
            return None
        plan = Plan(starts=names, labels=(label,), best=best, most=most, table=False)
        said = f"Which of these has the {most} {best}: {'; '.join(names)}? Answer only with its {label}."
        cells = frozenset([(winner, label), *((name, best) for name in names)])
        return self._value(plan, said, winner, label, cells)

    def chain(self, rng: Random) -> Draft | None:
        """A value of the country at the end of a path that never comes back."""
        hops = tuple(rng.choices(_HOPS, k=rng.choice((1, 2, 2, 3))))
        start = rng.choice(self.countries)
        if rng.random() < 0.3:
            start, hops = rng.choice(self.places), (PLACE, *hops[:2])
        end, label = self._end(start, hops), _labels(rng, 1)[0]
        if end is None or not self._plain(end, label):
            return None
        steps = [f"go to {_THAT[hop]}" for hop in hops if hop != PLACE]
        begin = f"Begin with the country of {start}" if hops[0] == PLACE else f"Begin with {start}"
        said = f"{begin}; {'; from there '.join(steps)}. Answer only with the {label} of the country where you end."
        plan = Plan(starts=(start,), hops=hops, labels=(label,), table=False)
        return self._value(
            plan, said if steps else f"{begin}. Answer only with its {label}.", end, label, frozenset([(end, label)])
        )

    def fact(self, rng: Random) -> Draft | None:
        """One value of a country, or a person's year of birth."""
        if rng.random() < 0.25:
            name, label = rng.choice(self.people), BORN
            said = f"In which year was {name} born? Answer only with the year."
        else:
            name, label = rng.choice(self.countries), _labels(rng, 1)[0]
            said = f"Find the {label} of {name}. Answer only with the value."
        if not self._plain(name, label):
            return None
        return self._value(
            Plan(starts=(name,), labels=(label,), table=False), said, name, label, frozenset([(name, label)])
        )

    def _having(self, names: list[str] | tuple[str, ...], labels: tuple[str, ...]) -> list[str]:
        return [name for name in names if all((name, label) in self.facts.values for label in labels)]

    def _some(self, rng: Random, names: list[str], low: int, high: int) -> tuple[str, ...] | None:
        """Half of the time at most six."""
        count = rng.randint(low, 6 if rng.random() < 0.5 else high)
        return tuple(rng.sample(names, count)) if len(names) >= count else None

    def _end(self, start: str, hops: tuple[str, ...]) -> str | None:
        """Where ``hops`` lead; None where one is unknown or comes back."""
        seen, name = {start}, start
        for hop in hops:
            following = self.facts.hops.get((name, hop))
            if following is None or following in seen:
                return None
            name = following
            seen.add(name)
        return name

    def _amount(self, name: str, label: str) -> Decimal:
        found = amount_of(self.facts.values[name, label][0])
        assert found is not None
        return found.number

    def _plain(self, name: str, label: str) -> bool:
        """Whether the value survives exact match, which drops points and signs."""
        found = self.facts.values.get((name, label))
        if found is None:
            return False
        return label == BORN or BY_LABEL[label].kind not in ("number", "point") or not set(found[0]) & set(".-")

    def _table(self, plan: Plan, said: str, key: str = "country") -> Draft:
        rows, cells = [], []
        for start in plan.starts:
            names = [start]
            for hop in plan.hops:
                names.append(self.facts.hops[names[-1], hop])
            cells += [(names[-1], label) for label in plan.labels]
            rows.append((*names, *(self.facts.values[names[-1], label][0] for label in plan.labels)))
        columns = columns_of(plan, key)
        prompt = f"{said} Answer with a Markdown table, columns: {', '.join(columns)}. {_AS_WRITTEN}"
        return Draft(plan=plan, prompt=prompt, rows=tuple(rows), columns=columns, cells=frozenset(cells))

    def _value(self, plan: Plan, prompt: str, name: str, label: str, cells: frozenset[Cell]) -> Draft:
        value, others = self.facts.values[name, label]
        rows = ((value, *others),)
        winner = name if plan.best else ""
        return Draft(plan=plan, prompt=prompt, rows=rows, columns=(), cells=cells, winner=winner)

    def task(self, family: str, draft: Draft) -> Task:
        """The task of ``draft``."""
        plan = draft.plan
        if draft.columns:
            unique = draft.columns[:1]
            gold = Gold(kind="table", columns=draft.columns, unique_columns=unique, rows=draft.rows)
            gold = replace(gold, aliases=self._aliases(draft))
        else:
            gold = Gold(kind="exact", answers=draft.rows[0])
        found = oracle(plan, plan.starts, lambda name, hop: self.facts.hops[name, hop], draft.winner)
        return Task(
            key=task_key(draft.prompt, [family, *draft.rows]),
            family=family,
            split=self.split,
            prompt=draft.prompt,
            gold=gold,
            oracle=found,
            width=len(plan.starts),
            plan=plan.to_dict(),
        )

    def _aliases(self, draft: Draft) -> dict[str, str]:
        """Other spellings of the table's cells; those that would be ambiguous in it are left out."""
        plan, found = draft.plan, {}
        taken = {_norm(cell) for row in draft.rows for cell in row}
        unclear: set[str] = set()
        for row in draft.rows:
            names = row[: len(plan.hops) + 1]
            pairs = [(name, self.facts.other_names(name)) for name in names]
            pairs += [self.facts.values[names[-1], label] for label in plan.labels]
            for spelling, others in pairs:
                for other in others:
                    norm = _norm(other)
                    if norm in taken or _norm(found.get(norm, spelling)) != _norm(spelling):
                        unclear.add(norm)
                    found[norm] = spelling
        return {norm: spelling for norm, spelling in found.items() if norm not in unclear}


def columns_of(plan: Plan, key: str) -> tuple[str, ...]:
    """The columns of a table: the start, each hop, each label."""
    first, second = plan.hops[:1], plan.hops[1:2]
    again = tuple(f"{hop} of that" for hop in second)
    return (key, *first, *again, *plan.labels)


def split_of(name: str) -> str:
    """The split that a name belongs to: a hash of it, 68 : 16 : 16."""
    draw = int(hashlib.sha256(f"factbook:{name}".encode()).hexdigest()[:8], 16) / 2**32
    return "train" if draw < 0.68 else "val" if draw < 0.84 else "test"


def make_tasks(facts: Facts) -> dict[str, list[Task]]:
    """The questions of all splits."""
    held_out: set[Cell] = set()
    made = {}
    for split, count in COUNTS.items():
        drawn = list(_drawn(Families(facts, split), count, held_out if split != "test" else set()))
        held_out |= {cell for _, cells in drawn for cell in cells} if split != "train" else set()
        made[split] = [task for task, _ in drawn]
    return made


def _drawn(families: Families, count: int, forbidden: set[Cell]) -> Iterator[tuple[Task, frozenset[Cell]]]:
    """Distinct tasks in mixed order, each with the values that it asks for."""
    keys: set[str] = set()
    order = Random(f"factbook:{families.split}:order")
    wanted = [family for family, share in SHARES.items() for _ in range(round(share * count))]
    for index, family in enumerate(order.sample(wanted, len(wanted))):
        for attempt in range(_TRIES):
            rng = Random(f"factbook:{families.split}:{family}:{index}:{attempt}")
            draft = families.draw(family, rng)
            if draft is None or draft.cells & forbidden:
                continue
            task = families.task(family, draft)
            if task.key not in keys:
                keys.add(task.key)
                yield task, draft.cells
                break
        else:
            raise ValueError(f"no question of family {family} is left for {families.split}")


def _labels(rng: Random, count: int) -> tuple[str, ...]:
    return tuple(field.label for field in rng.sample(FIELDS, count))


def _and(words: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _norm(text: str) -> str:
    return " ".join(text.casefold().split())
