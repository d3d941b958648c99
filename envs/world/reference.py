"""Scripted policies that solve tasks with the tools alone: for demonstrations, and to check oracles.

A policy is a pure function of (task, history, seed): it turns the history into notes, asks for the first
thing that is missing, and answers when nothing is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from envs.base import Task
from envs.world.wording import (
    ARCHIVE,
    NOT_FOUND,
    answer_table,
    asking,
    conclusion,
    items,
    read_fact,
    read_hits,
    read_members,
    split_words,
    subject,
)

Style = Literal["serial", "direct", "parallel", "partial", "wrong"]
Call = tuple[str, dict[str, Any]]
Turn = Sequence[tuple[str, dict[str, Any], str]]  # (tool, arguments, result text), in call order
Action = list[Call] | str  # tool calls of one turn, or the final answer

WORKER = "worker"
CREATE: Call = ("create_subagent", {"name": WORKER, "system_prompt": "Look up facts."})


def pick_hit(query: str, result: str) -> str | None:
    """The page to open for ``query``: its exact title, else the first page that is not outdated."""
    hits = read_hits(result)
    wanted = {query.casefold(), subject(query).casefold()}
    exact = [page for title, page in hits if title.casefold() in wanted]
    current = [page for title, page in hits if not title.endswith(ARCHIVE)]
    return next(iter([*exact, *current, *(page for _, page in hits)]), None)


@dataclass(slots=True)
class _Notes:
    """Notes on a history: search results by query, pages by url, their lines by pattern, messages by prompt."""

    searches: dict[str, str]
    pages: dict[str, str]
    lines: dict[tuple[str, str], str]
    returns: dict[str, str]
    created: bool

    @classmethod
    def of(cls, history: Sequence[Turn]) -> _Notes:
        notes = cls({}, {}, {}, {}, False)
        for name, arguments, result in (entry for turn in history for entry in turn):
            if name == "search":
                notes.searches[arguments["query"]] = result
                notes.searches.setdefault(subject(arguments["query"]), result)
            elif name == "open_page":
                notes.pages[arguments["url"]] = result
            elif name == "find_in_page":
                notes.lines[arguments["url"], arguments["pattern"]] = result
            elif name == "assign_task":
                notes.returns[arguments["prompt"]] = result
            elif name == "create_subagent":
                notes.created = True
        return notes

    def read(self, name: str, labels: Sequence[str] = ()) -> str | None:
        """What was read of the page of ``name``; "" if it does not exist, None if not yet looked up."""
        if name not in self.searches:
            return None
        url = pick_hit(name, self.searches[name])
        if url is None:
            return ""
        found = self.lines.get((url, "|".join(labels)))
        return self.pages.get(url) if found is None else found

    def look_up(self, name: str, labels: Sequence[str] = (), *, query: str | None = None) -> list[Call]:
        """The next call towards ``labels`` of ``name``: find them in its page; without labels open it.

        ``query``: what to search instead of the name.
        """
        if name not in self.searches:
            return [("search", {"query": query or name})]
        url = pick_hit(name, self.searches[name])
        if labels:
            return [("find_in_page", {"url": url, "pattern": "|".join(labels)})]
        return [("open_page", {"url": url})]

    def assign(self, prompts: Sequence[str], *, create_first: bool = False) -> list[Call]:
        """One turn that assigns ``prompts``, creating the sub-agent first (or, ``create_first``, only that)."""
        calls: list[Call] = [("assign_task", {"agent": WORKER, "prompt": prompt}) for prompt in prompts]
        if self.created:
            return calls
        return [CREATE] if create_first else [CREATE, *calls]


@dataclass(frozen=True, slots=True)
class ReferencePolicy:
    """A scripted orchestrator.

    ``serial``: one call per turn. ``direct``: the same, but the calls of independent rows in one turn (if
    ``rollouts.budget.direct_calls`` allows it). ``parallel``: independent rows by sub-agents at once, all
    else serial (so it meets ``Task.oracle.parallel_steps``). ``partial``: some rows by sub-agents, the rest
    itself. ``wrong``: spawns where it does not pay, for one row, or for each hop of a chain in turn.
    """

    style: Style
    seed: int = 0

    def act(self, task: Task, history: Sequence[Turn]) -> Action:
        """The next turn: tool calls, or the final answer. ValueError for a task without a plan."""
        if not task.plan:
            raise ValueError(f"task {task.key} has no plan; only tasks of the embedded world can be demonstrated")
        notes = _Notes.of(history)
        attributes: list[str] = task.plan["attributes"]
        if "hops" in task.plan:
            return self._path(task, notes, attributes[0])
        if "names" in task.plan:
            return self._rows(task, notes, task.plan["names"], attributes)
        return self._members(task, notes, attributes)

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

    def _rows(self, task: Task, notes: _Notes, names: Sequence[str], attributes: Sequence[str]) -> Action:
        item = dict(zip(names, items(names), strict=True))
        asked = {name: asking(attributes, item[name]) for name in names}
        prompts = {name: asked[name] for name in self._delegated(task, names)}
        if any(prompt not in notes.returns for prompt in prompts.values()):
            return notes.assign(list(prompts.values()), create_first=self.creates_first(task))
        rows: list[list[str]] = []
        missing: list[Call] = []
        for name in names:
            source = notes.returns.get(prompts.get(name, ""), "")
            if any(read_fact(source, a) is None for a in attributes):  # not delegated, or not returned
                page = notes.read(name, attributes)
                if page is None:
                    missing += notes.look_up(name, attributes, query=asked[name])
                    if self.style != "direct":
                        return missing
                source = page or ""
            rows.append([item[name], *(read_fact(source, a) or "" for a in attributes)])
        return missing or answer_table(("name", *attributes), rows)

    def _members(self, task: Task, notes: _Notes, attributes: Sequence[str]) -> Action:
        group = task.plan["group"]
        page = notes.read(group)
        if page is None:
            return notes.look_up(group)
        listed = read_fact(page, "members")
        if listed is not None:
            return self._rows(task, notes, read_members(listed), attributes)
        rows: list[list[str]] = []
        name = read_fact(page, "first")
        while name not in (None, "", "none"):
            action, text = self._visit(task, notes, name, [*attributes, "next"])
            if action is not None:
                return action
            rows.append([name, *(read_fact(text, a) or "" for a in attributes)])
            name = read_fact(text, "next")
        return answer_table(("name", *attributes), rows)

    def _path(self, task: Task, notes: _Notes, attribute: str) -> Action:
        name, fact, value = task.plan["names"][0], "", ""
        for label in (*task.plan["hops"], attribute):
            action, text = self._visit(task, notes, name, [label])
            if action is not None:
                return action
            value = read_fact(text, label) or ""
            if not value:
                return conclusion(NOT_FOUND, "")  # a lost hop: nothing further can be known
            fact, name = _report(text, label, [label]), value
        return conclusion(fact, value)

    def _visit(self, task: Task, notes: _Notes, name: str, labels: Sequence[str]) -> tuple[Action | None, str]:
        """The facts of one step that others depend on: (next action, "") while missing, else (None, text)."""
        if self.style == "wrong":
            prompt = asking(labels, name)
            if prompt not in notes.returns:
                return notes.assign([prompt], create_first=self.creates_first(task)), ""
            if all(read_fact(notes.returns[prompt], label) is not None for label in labels):
                return None, notes.returns[prompt]
        page = notes.read(name, labels)
        return (notes.look_up(name, labels), "") if page is None else (None, page)


def subagent_act(prompt: str, history: Sequence[Turn]) -> Action:
    """The scripted sub-agent: search, look, then the lines asked for, or ``not found``."""
    notes = _Notes.of(history)
    name = subject(prompt)
    if name != prompt:  # an item of a list
        asked, query = prompt[: -len(name)].rpartition(", ")[0], prompt
    else:
        asked, _, query = prompt.partition(" of ")
        name = query
    if query not in notes.searches:
        return [("search", {"query": query})] if query else NOT_FOUND
    for title, _ in read_hits(notes.searches[query]):  # a name may contain " of "; a title shows where it begins
        if prompt.endswith(f" of {title}"):
            notes.searches[title] = notes.searches[query]
            asked, name = prompt[: -len(title) - 4], title
            break
    labels = split_words(asked)
    page = notes.read(name, labels)
    if page is None:
        return notes.look_up(name, labels)
    return _report(page, asked, labels) or NOT_FOUND


def _report(page: str, asked: str, labels: Sequence[str]) -> str:
    """The lines of ``page`` about ``asked`` (one label that reads like several), else those of ``labels``."""
    wanted = [asked] if read_fact(page, asked) is not None else labels
    lines = [line for label in wanted for line in page.splitlines() if line.startswith(f"{label} | ")]
    return "\n".join(dict.fromkeys(lines))
