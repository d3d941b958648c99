"""Scripted policies that solve the corpus's questions with the tools alone: baselines and demonstrations.

A policy is a pure function of (plan, history): it turns the history into notes, asks for what is missing at the
lowest level, and answers when nothing is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from envs.base import Task
from envs.research.factbook.facts import (
    AUTHOR,
    BORDER,
    BORN,
    EXPORT,
    IMPORT,
    LINES,
    OTHER_NAMES,
    PLACE,
    author_on,
    birth_year,
    country_on,
)
from envs.research.factbook.families import columns_of
from envs.research.factbook.fields import BY_LABEL
from envs.research.factbook.plans import Need, Plan, hop_need, label_needs
from envs.research.factbook.reader import amount_of, borders, brief, greatest, known_as, line_of, partners
from envs.research.site import MAX_QUERIES
from envs.teacher import Action, Asked, History

Style = Literal["serial", "direct", "parallel", "partial", "wrong"]
WORKER = "worker"
CREATE: Asked = ("create_subagent", {"name": WORKER, "system_prompt": "Look it up with the tools. Answer briefly."})
LOST = "not found"
_HOPS = (EXPORT, IMPORT, BORDER, AUTHOR, PLACE)
_NAMES = {known_as(other): name for name, others in OTHER_NAMES.items() for other in others}


@dataclass(slots=True)
class Notes:
    """Notes on a history: page ids by title, texts by (id, words), sub-agents' messages by prompt."""

    ids: dict[str, str] = field(default_factory=dict)
    queries: set[str] = field(default_factory=set)
    texts: dict[tuple[str, str], str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    created: bool = False

    @classmethod
    def of(cls, history: History) -> Notes:
        """The notes on ``history``."""
        notes = cls()
        for name, arguments, result in (entry for turn in history for entry in turn):
            if name == "search":
                notes.queries |= set(arguments["queries"])
                for line in result.splitlines():
                    page, _, title = line.partition(" ")
                    if re.fullmatch(r"p\d+", page):
                        notes.ids.setdefault(title, page)
            elif name == "find":
                notes.texts[arguments["page"], arguments["text"]] = result
            elif name == "open":
                notes.texts[arguments["page"], ""] = result.partition("\n")[2]
            elif name == "assign_task":
                notes.messages[arguments["prompt"]] = result
            elif name == "create_subagent":
                notes.created = True
        return notes

    def read(self, need: Need) -> str | None:
        """The text for ``need``; "" if no search found the page, None if not yet looked up."""
        page = self.ids.get(need.title)
        if page is None:
            return "" if need.title in self.queries else None
        return self.texts.get((page, need.words))

    def query(self, need: Need) -> str:
        """What to search: after a first query that did not show the page, its title."""
        return need.title if need.query in self.queries else need.query


@dataclass(slots=True)
class Row:
    """A row so far: its cells, or what is needed next."""

    cells: list[str]
    needs: list[Need] = field(default_factory=list)


def walk(plan: Plan, start: str, notes: Notes) -> Row:
    """How far ``notes`` lead from ``start``; cells that cannot be found are empty."""
    row, name = Row(cells=[start]), start
    for hop in plan.hops:
        need = hop_need(name, hop)
        text = notes.read(need)
        if text is None:
            return Row(cells=[], needs=[need])
        name = next_name(text, hop)
        row.cells.append(name)
        if not name:
            row.cells += [""] * (len(plan.hops) + 1 - len(row.cells))
            break
    return _values(row, name, plan.row_labels, notes)


def _values(row: Row, name: str, labels: Sequence[str], notes: Notes) -> Row:
    if not name:
        return Row(cells=[*row.cells, *("" for _ in labels)])
    needs = label_needs(name, labels)
    missing = [need for need in needs if notes.read(need) is None]
    if missing:
        return Row(cells=[], needs=missing)
    text = "\n".join(notes.read(need) or "" for need in needs)
    return Row(cells=[*row.cells, *(value_in(text, label) for label in labels)])


def next_name(text: str, hop: str) -> str:
    """Where ``hop`` leads, by the text that was read; "" if it does not say."""
    if hop in (AUTHOR, PLACE):
        found = (author_on if hop == AUTHOR else country_on)(text)
    else:
        found = greatest((borders if hop == BORDER else partners)(line_of(text, LINES[hop]) or ""))
    return _NAMES.get(known_as(found or ""), found or "")


def value_in(text: str, label: str) -> str:
    """The value of ``label`` as an answer writes it; "" if the text does not have it."""
    if label == BORN:
        return birth_year(text) or ""
    line = line_of(text, label)
    return "" if line is None else brief(line, BY_LABEL[label].kind)


def prompt_of(plan: Plan, start: str) -> str:
    """What a sub-agent is asked for a row: ``Peru's largest export partner: capital (name); birth rate``."""
    path = "'s ".join((start, *plan.hops))
    return f"{path}: {'; '.join(plan.row_labels)}"


def plan_of(prompt: str) -> Plan | None:
    """The row's plan behind such a prompt; None for another text."""
    path, _, labels = prompt.partition(": ")
    hops: list[str] = []
    while match := re.fullmatch(rf"(.+)'s ({'|'.join(_HOPS)})", path):
        path, hop = match.groups()
        hops.insert(0, hop)
    asked = tuple(labels.split("; "))
    if not path or not all(label in BY_LABEL or label == BORN for label in asked):
        return None
    return Plan(starts=(path,), hops=tuple(hops), labels=asked)


def subagent_act(prompt: str, history: History) -> Action:
    """The scripted sub-agent: one row, serially; its message is the cells behind the row's name."""
    plan = plan_of(prompt)
    if plan is None:
        return LOST
    notes = Notes.of(history)
    row = walk(plan, plan.starts[0], notes)
    if row.needs:
        return ask(row.needs, notes)
    return " | ".join(row.cells[1:]) if all(row.cells) else LOST


def ask(needs: Sequence[Need], notes: Notes, *, direct: bool = False) -> list[Asked]:
    """The next turn's calls: a page that is known is read, else all that are not are searched; ``direct``: both."""
    needs = list(dict.fromkeys(needs))
    reads = [_read(notes.ids[need.title], need) for need in needs if need.title in notes.ids]
    queries = list({need.title: notes.query(need) for need in needs if need.title not in notes.ids}.values())
    batches = [queries[at : at + MAX_QUERIES] for at in range(0, len(queries), MAX_QUERIES)]
    searches: list[Asked] = [("search", {"queries": batch}) for batch in batches]
    return [*reads, *searches] if direct else [*reads, *searches][:1]


def _read(page: str, need: Need) -> Asked:
    return ("find", {"page": page, "text": need.words}) if need.words else ("open", {"page": page})


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """A scripted orchestrator.

    ``serial``: one call a turn. ``direct``: all calls of a level in one turn (``rollouts.budget.direct_calls`` must
    allow it). ``parallel``: a sub-agent for each row where that pays. ``partial``: for some rows. ``wrong``: one
    sub-agent where it does not pay.
    """

    style: Style
    seed: int = 0

    def act(self, task: Task, history: History) -> Action:
        """The next turn. ValueError for a task without a plan."""
        if not task.plan:
            raise ValueError(f"task {task.key} has no plan: only questions that were built with it can be demonstrated")
        plan, notes = Plan.of(task.plan), Notes.of(history)
        starts = plan.starts
        if plan.members_of:
            need = hop_need(plan.members_of, BORDER)
            text = notes.read(need)
            if text is None:
                return ask([need], notes)
            starts = tuple(_NAMES.get(known_as(name), name) for name, _ in borders(line_of(text, LINES[BORDER]) or ""))
        delegated = self._delegated(task, starts)
        prompts = {start: prompt_of(plan, start) for start in delegated}
        if any(prompt not in notes.messages for prompt in prompts.values()):
            calls: list[Asked] = [("assign_task", {"agent": WORKER, "prompt": each}) for each in prompts.values()]
            return calls if notes.created else [CREATE, *calls]
        rows, needs = self._rows(plan, starts, prompts, notes)
        if needs:
            return ask(needs, notes, direct=self.style == "direct")
        return self._answer(plan, rows, notes)

    def _rows(
        self, plan: Plan, starts: Sequence[str], prompts: dict[str, str], notes: Notes
    ) -> tuple[list[list[str]], list[Need]]:
        """Cells of all rows, and what is still needed; a row that a sub-agent lost is looked up."""
        rows, needs = [], []
        width = 1 + len(plan.hops) + len(plan.row_labels)
        for start in starts:
            told = [start, *(part.strip() for part in notes.messages.get(prompts.get(start, ""), "").split(" | "))]
            if start in prompts and len(told) == width:
                rows.append(told)
                continue
            row = walk(plan, start, notes)
            needs += row.needs
            rows.append(row.cells)
        return rows, needs

    def _answer(self, plan: Plan, rows: list[list[str]], notes: Notes) -> Action:
        if plan.table:
            columns = columns_of(plan, "work" if AUTHOR in plan.hops else "country")
            lines = [columns, *rows]
            shown = [f"| {' | '.join(cells)} |" for cells in lines]
            return "\n".join([shown[0], "|" + "---|" * len(columns), *shown[1:]])
        if not plan.best:
            return f"{rows[0][-2]}: {rows[0][-1]}\nAnswer: {rows[0][-1]}" if rows[0][-1] else f"Answer: {LOST}"
        found = [(amount.number, row[0]) for row in rows if (amount := amount_of(row[-1]))]
        if not found:
            return f"Answer: {LOST}"
        winner = (max if plan.most == "highest" else min)(found, key=lambda pair: pair[0])[1]
        last = _values(Row(cells=[winner]), winner, plan.labels, notes)
        if last.needs:
            return ask(last.needs, notes, direct=self.style == "direct")
        return f"{winner}: {last.cells[-1]}\nAnswer: {last.cells[-1]}"

    def _delegated(self, task: Task, starts: Sequence[str]) -> list[str]:
        """The rows for sub-agents."""
        pays = task.oracle is not None and task.oracle.width > 0
        if self.style in ("serial", "direct") or (self.style in ("parallel", "partial") and not pays):
            return []
        if self.style == "parallel":
            return list(starts)
        rng = Random(f"{self.seed}:{task.key}")
        count = 1 if self.style == "wrong" else rng.randint(1, max(1, len(starts) - 1))
        chosen = set(rng.sample(list(starts), min(count, len(starts))))
        return [start for start in starts if start in chosen]
