"""Scripted policies that solve tasks with the tools alone: for demonstrations, and to check oracles.

A policy is a pure function of (task, history, seed): it turns the history into notes, asks for the first
thing that is missing, and answers when nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from envs.base import Task
from envs.world.notes import CREATE, WORKER, Call, Notes, Turn, pick_hit
from envs.world.wording import (
    NOT_FOUND,
    answer_table,
    asking,
    choice_query,
    conclusion,
    hit_line,
    hop_query,
    items,
    read_fact,
    read_hits,
    read_hop,
    read_members,
    split_words,
    subject,
)

__all__ = ("CREATE", "WORKER", "Action", "ReferencePolicy", "Style", "Turn", "pick_hit", "subagent_act")

Style = Literal["serial", "direct", "parallel", "partial", "wrong"]
Action = list[Call] | str  # tool calls of one turn, or the final answer


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """A scripted orchestrator.

    ``serial``: one call per turn. ``direct``: the same, but the calls of independent rows in one turn (if
    ``rollouts.budget.direct_calls`` allows it). ``parallel``: independent rows by sub-agents at once, all
    else serial (so it meets ``Task.oracle.parallel_steps``). ``partial``: some rows by sub-agents, the rest
    itself. ``wrong``: spawns where it does not pay, for one row, or for each hop of a chain in turn.

    ``named``: parallel calls say whose page they open (``3. Karona: p4217``). That costs about five tokens a call, and
    a small policy needs the number to know which row comes next.
    """

    style: Style
    seed: int = 0
    named: bool = False

    def act(self, task: Task, history: Sequence[Turn]) -> Action:
        """The next turn: tool calls, or the final answer. ValueError for a task without a plan."""
        if not task.plan:
            raise ValueError(f"task {task.key} has no plan; only tasks of the embedded world can be demonstrated")
        notes = Notes.of(history)
        attributes: list[str] = task.plan["attributes"]
        if "candidates" in task.plan:
            return self._two_phase(task, notes, attributes)
        if "hops" in task.plan:
            return self._path(task, notes, attributes[0])
        if "names" in task.plan:
            return self._rows(task, notes, task.plan["names"], attributes)
        return self._members(task, notes, attributes, task.plan["group"])

    def creates_first(self, task: Task) -> bool:
        """Whether creating the sub-agent takes its own turn (a quarter of the seeds), one step above the
        oracle.
        """
        return self._rng(task, "create").random() < 0.25

    def _rng(self, task: Task, purpose: str) -> Random:
        return Random(f"{purpose}:{self.seed}:{task.key}")

    def _delegated(self, task: Task, names: Sequence[str]) -> list[str]:
        """The rows for sub-agents."""
        if self.style in ("serial", "direct") or (self.style == "parallel" and len(names) == 1):
            return []
        if self.style == "parallel":
            return list(names)
        rng = self._rng(task, "delegate")
        count = 1 if self.style == "wrong" else rng.randint(1, max(1, len(names) - 1))
        chosen = set(rng.sample(list(names), count))
        return [name for name in names if name in chosen]

    def _rows(self, task: Task, notes: Notes, names: Sequence[str], attributes: Sequence[str]) -> Action:
        action, rows = self._gather(task, notes, names, attributes)
        return action or answer_table(("name", *attributes), rows)

    def _gather(
        self, task: Task, notes: Notes, names: Sequence[str], attributes: Sequence[str]
    ) -> tuple[list[Call], list[list[str]]]:
        """(next calls, []) while something is missing, else ([], item and values of each row)."""
        item = dict(zip(names, items(names), strict=True))
        asked = {name: asking(attributes, item[name]) for name in names}
        prompts = {name: asked[name] for name in self._delegated(task, names)}
        if any(prompt not in notes.returns for prompt in prompts.values()):
            return notes.assign(list(prompts.values()), create_first=self.creates_first(task)), []
        rows: list[list[str]] = []
        missing: list[Call] = []
        for name in names:
            source = notes.returns.get(prompts.get(name, ""), "")
            if any(read_fact(source, a) is None for a in attributes):  # not delegated, or not returned
                call, source = notes.towards(name, attributes, query=asked[name])
                if call is not None:
                    missing.append(_named(call, item[name]) if self.named and self.style == "direct" else call)
                    if self.style != "direct":
                        return missing, []
            rows.append([item[name], *(read_fact(source, a) or "" for a in attributes)])
        return (missing, []) if missing else ([], rows)

    def _two_phase(self, task: Task, notes: Notes, attributes: Sequence[str]) -> Action:
        """Find the candidate that has the known fact, and then the table of its group."""
        known, wanted = task.plan["known"], task.plan["wanted"]
        names: list[str] = task.plan["candidates"]
        action, rows = self._gather(task, notes, names, [known])
        if action:
            return action
        at = next((i for i, (_, value) in enumerate(rows) if value == wanted), None)
        if at is None:
            return answer_table(("name", *attributes), [])
        query = choice_query([(item, value) for item, value in rows[: at + 1]])
        call, found = notes.towards(subject(rows[at][0]), ["group"], query=query)
        if call is not None:
            return [call]
        return self._members(task, notes, attributes, read_fact(found, "group") or "")

    def _members(self, task: Task, notes: Notes, attributes: Sequence[str], group: str) -> Action:
        page = notes.read(group)
        if page is None:
            return notes.look_up(group)
        listed = read_fact(page, "members")
        if listed is not None:
            return self._rows(task, notes, read_members(listed), attributes)
        rows: list[list[str]] = []
        name = read_fact(page, "first")
        while name not in (None, "", "none"):
            item = f"{len(rows) + 1}. {name}"
            labels = [*attributes, "next"]
            action, text = self._visit(task, notes, name, labels, asking(labels, item))
            if action is not None:
                return action
            rows.append([item, *(read_fact(text, a) or "" for a in attributes)])
            name = read_fact(text, "next")
        return answer_table(("name", *attributes), rows)

    def _path(self, task: Task, notes: Notes, attribute: str) -> Action:
        """Hop by hop; the queries of a chain begin with the number that the hop has in the question."""
        name, fact, value = task.plan["names"][0], "", ""
        hops = task.plan["hops"]
        for number, label in enumerate((*hops, attribute), 1):
            prompt = hop_query(number, label, name) if hops else None
            action, text = self._visit(task, notes, name, [label], prompt)
            if action is not None:
                return action
            value = read_fact(text, label) or ""
            if not value:
                return conclusion(NOT_FOUND, "")  # a lost hop: nothing further can be known
            fact, name = _report(text, label, [label]), value
        return conclusion(fact, value)

    def _visit(
        self, task: Task, notes: Notes, name: str, labels: Sequence[str], query: str | None
    ) -> tuple[Action | None, str]:
        """The facts of one step that others depend on: (next action, "") while missing, else (None, text).

        ``query``: what is searched, instead of the name, or handed to a sub-agent.
        """
        if self.style == "wrong":
            prompt = query or asking(labels, name)
            if prompt not in notes.returns:
                return notes.assign([prompt], create_first=self.creates_first(task)), ""
            if all(read_fact(notes.returns[prompt], label) is not None for label in labels):
                return None, notes.returns[prompt]
        call, found = notes.towards(name, labels, query=query)
        return ([call], "") if call is not None else (None, found)


def _named(call: Call, item: str) -> Call:
    """``call``, with the item whose page it opens."""
    tool, arguments = call
    return (tool, {**arguments, "url": hit_line(item, arguments["url"])}) if "url" in arguments else call


def subagent_act(prompt: str, history: Sequence[Turn]) -> Action:
    """The scripted sub-agent: search, look, then the lines asked for, or ``not found``."""
    notes = Notes.of(history)
    name = subject(prompt)
    if hop := read_hop(prompt):
        asked, name, query = *hop, prompt
    elif name != prompt:  # an item of a list
        asked, query = prompt[: -len(name)].rpartition(", ")[0], prompt
    else:
        asked, _, query = prompt.partition(" of ")
        name = query
    if query not in notes.searches:
        return [("search", {"query": query})] if query else NOT_FOUND
    for title, _ in read_hits(
        "" if hop else notes.searches[query]
    ):  # a name may contain " of "; a title shows where it begins
        if prompt.endswith(f" of {title}"):
            notes.searches[title] = notes.searches[query]
            asked, name = prompt[: -len(title) - 4], title
            break
    labels = split_words(asked)
    call, page = notes.towards(name, labels)
    if call is not None:
        return [call]
    return _report(page, asked, labels) or NOT_FOUND


def _report(page: str, asked: str, labels: Sequence[str]) -> str:
    """The lines of ``page`` about ``asked`` (one label that reads like several), else those of ``labels``."""
    wanted = [asked] if read_fact(page, asked) is not None else labels
    lines = [line for label in wanted for line in page.splitlines() if line.startswith(f"{label} | ")]
    return "\n".join(dict.fromkeys(lines))
