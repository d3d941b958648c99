"""Pages of the world: compact text, one fact per line, with the name on every line."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from envs.world.knowledge import DOSSIERS, NOTES, Entity, Group, Knowledge
from envs.world.wording import ARCHIVE, fact_line, members


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A page. ``keywords`` (aliases) are indexed, not shown; ``authority`` scales its rank (1: neutral).

    ``linked``: no search finds it, only a link. ``scan``: nothing can be found in it; it has to be opened.
    """

    page_id: str
    title: str
    text: str
    keywords: str = ""
    authority: float = 1.0
    linked: bool = False
    scan: bool = False


_ARCHIVE_BEHIND, _ARCHIVE_AHEAD = 0.7, 1.4  # outweighs the effect of a page's length on its BM25 score


def profile_lines(entity: Entity) -> list[str]:
    """The facts about ``entity``, one per line, in the order of its fields."""
    labels = {**entity.values, **entity.relations}
    if entity.next:
        labels["next"] = entity.next
    if entity.alias:
        labels["alias"] = entity.alias
    if entity.group:
        labels["group"] = entity.group
    return [fact_line(entity.name, label, value) for label, value in labels.items()]


def group_text(group: Group) -> str:
    """The page of ``group``: its members, or only the first if they are chained."""
    if group.chained:
        return fact_line(group.name, "first", group.members[0])
    return fact_line(group.name, "members", members(group.members))


def page_ids(count: int, rng: Random, letter: str = "p") -> list[str]:
    """``count`` distinct ids, ``letter`` and four digits; six digits above 8000 pages, more above 800000."""
    digits = 4
    while count > 8 * 10 ** (digits - 1):
        digits += 2
    return [f"{letter}{n}" for n in rng.sample(range(10 ** (digits - 1), 10**digits), count)]


def build_documents(knowledge: Knowledge) -> list[Document]:
    """Profiles, outdated pages, group pages and dossiers of ``knowledge`` under seeded ids."""
    rng = Random(f"documents:{knowledge.seed}:{knowledge.split}")
    drafts: list[tuple[str, str, str, float]] = []
    links, dossiers = dossier_pages(knowledge)
    for entity in knowledge.entities.values():
        lines = [*profile_lines(entity), *links.get(entity.name, ())]
        rng.shuffle(lines)
        drafts.append((entity.name, "\n".join(lines), entity.alias or "", 1.0))
        if entity.archive is not None:
            old = [fact_line(entity.name, label, value) for label, value in entity.archive.items()]
            rng.shuffle(old)
            authority = _ARCHIVE_AHEAD if entity.archive_first else _ARCHIVE_BEHIND
            drafts.append((entity.name + ARCHIVE, "\n".join(old), "", authority))
    drafts += [(group.name, group_text(group), "", 1.0) for group in knowledge.groups]
    ids = page_ids(len(drafts), rng)
    documents = [
        Document(page_id=page, title=title, text=text, keywords=keywords, authority=authority)
        for page, (title, text, keywords, authority) in zip(ids, drafts, strict=True)
    ]
    return documents + dossiers


def dossier_pages(knowledge: Knowledge) -> tuple[dict[str, list[str]], list[Document]]:
    """The lines of each profile that link its dossiers, and their pages: ``f....`` of files, ``s....`` of scans."""
    rng = Random(f"dossiers:{knowledge.seed}:{knowledge.split}")
    held = [(e, kind, dossier) for e in knowledge.entities.values() for kind, dossier in e.dossiers.items()]
    links: dict[str, list[str]] = {}
    pages: list[Document] = []
    counts = {kind: sum(dossier.pages for _, other, dossier in held if other == kind) for kind in DOSSIERS}
    ids = {kind: iter(page_ids(count, rng, kind[0])) for kind, count in counts.items()}
    names = list(knowledge.entities)
    for entity, kind, dossier in held:
        own = [next(ids[kind]) for _ in range(dossier.pages)]
        links.setdefault(entity.name, []).append(fact_line(entity.name, kind, own[0]))
        for number, page in enumerate(own):
            more = own[number + 1 : number + 2]
            lines = [fact_line(entity.name, kind, after) for after in more]
            lines += [] if more else [fact_line(entity.name, label, value) for label, value in dossier.values.items()]
            lines += [_other_line(entity, kind, names, rng) for _ in range(knowledge.lines - len(lines))]
            rng.shuffle(lines)
            title, text = f"{entity.name} {kind}", "\n".join(lines)
            pages.append(Document(page_id=page, title=title, text=text, linked=True, scan=kind == "scan"))
    return links, pages


def _other_line(entity: Entity, kind: str, names: list[str], rng: Random) -> str:
    """A line beside the point: in a file another fact about ``entity``, in a scan the same facts of others."""
    if kind == "file":
        return fact_line(entity.name, rng.choice(NOTES), str(rng.randint(10, 99)))
    while (other := rng.choice(names)) == entity.name:
        pass
    return fact_line(other, rng.choice(DOSSIERS[kind]), str(rng.randint(10, 99)))
