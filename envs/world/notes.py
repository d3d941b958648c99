"""What a scripted policy has learned so far, and the next call towards a fact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from envs.world.knowledge import DOSSIER_OF
from envs.world.wording import ARCHIVE, fact_line, page_of, read_choice, read_fact, read_hits, read_hop, subject

Call = tuple[str, dict[str, Any]]
Turn = Sequence[tuple[str, dict[str, Any], str]]  # (tool, arguments, result text), in call order

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
class Notes:
    """Notes on a history: search results by query, pages by url, their lines by pattern, messages by prompt."""

    searches: dict[str, str]
    pages: dict[str, str]
    lines: dict[tuple[str, str], str]
    returns: dict[str, str]
    created: bool

    @classmethod
    def of(cls, history: Sequence[Turn]) -> Notes:
        """The notes on ``history``."""
        notes = cls({}, {}, {}, {}, False)
        for tool, arguments, result in (entry for turn in history for entry in turn):
            if tool == "search":
                notes.searches[arguments["query"]] = result
                hop = read_hop(arguments["query"])
                name = hop[1] if hop else read_choice(arguments["query"]) or subject(arguments["query"])
                notes.searches.setdefault(name, result)
            elif tool == "open_page":
                notes.pages[page_of(arguments["url"])] = result
            elif tool == "find_in_page":
                notes.lines[page_of(arguments["url"]), arguments["pattern"]] = result
            elif tool == "assign_task":
                notes.returns[arguments["prompt"]] = result
            elif tool == "create_subagent":
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

    def look_up(self, name: str, labels: Sequence[str] = ()) -> list[Call]:
        """The next call towards ``labels`` of ``name``: find them in its page; without labels open it."""
        if name not in self.searches:
            return [("search", {"query": name})]
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

    def towards(self, name: str, labels: Sequence[str], *, query: str | None = None) -> tuple[Call | None, str]:
        """The next call towards ``labels`` of ``name``, or (None, the lines that were found, "" for none).

        ``query``: what to search instead of the name.
        """
        if (query or name) not in self.searches:
            return ("search", {"query": query or name}), ""
        kind = DOSSIER_OF.get(labels[0]) if len(labels) == 1 else None
        if kind is not None:
            return self._follow(name, labels[0], kind, pick_hit(name, self.searches[name]))
        page = self.read(name, labels)
        return (self.look_up(name, labels)[0], "") if page is None else (None, page)

    def _follow(self, name: str, attribute: str, kind: str, url: str | None) -> tuple[Call | None, str]:
        """From the profile at ``url`` along the dossier's links to the fact; scans are opened."""
        pattern = f"{attribute}|{kind}"
        while url is not None:
            opened = kind == "scan" and url[0] == "s"
            text = self.pages.get(url) if opened else self.lines.get((url, pattern))
            if text is None:
                arguments = {"url": url} if opened else {"url": url, "pattern": pattern}
                return ("open_page" if opened else "find_in_page", arguments), ""
            value = read_fact(text, attribute, name)
            if value is not None:
                return None, fact_line(name, attribute, value)
            url = read_fact(text, kind, name)
        return None, ""
