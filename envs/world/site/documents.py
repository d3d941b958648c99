"""Pages of the world: compact text, one fact per line, with the name on every line."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from envs.world.knowledge import Entity, Group, Knowledge
from envs.world.wording import ARCHIVE, fact_line, members


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A page. ``keywords`` (aliases) are indexed, not shown; ``authority`` scales its rank (1: neutral)."""

    page_id: str
    title: str
    text: str
    keywords: str = ""
    authority: float = 1.0


_ARCHIVE_BEHIND, _ARCHIVE_AHEAD = 0.7, 1.4  # outweighs the effect of a page's length on its BM25 score


def profile_lines(entity: Entity) -> list[str]:
    """The facts about ``entity``, one per line, in the order of its fields."""
    labels = {**entity.values, **entity.relations}
    if entity.next:
        labels["next"] = entity.next
    if entity.alias:
        labels["alias"] = entity.alias
    return [fact_line(entity.name, label, value) for label, value in labels.items()]


def group_text(group: Group) -> str:
    """The page of ``group``: its members, or only the first if they are chained."""
    if group.chained:
        return fact_line(group.name, "first", group.members[0])
    return fact_line(group.name, "members", members(group.members))


def page_ids(count: int, rng: Random) -> list[str]:
    """``count`` distinct ids, ``p`` and four digits; six digits above 8000 pages, more above 800000."""
    digits = 4
    while count > 8 * 10 ** (digits - 1):
        digits += 2
    return [f"p{n}" for n in rng.sample(range(10 ** (digits - 1), 10**digits), count)]


def build_documents(knowledge: Knowledge) -> list[Document]:
    """Profiles, outdated pages and group pages of ``knowledge`` under seeded ids."""
    rng = Random(f"documents:{knowledge.seed}:{knowledge.split}")
    drafts: list[tuple[str, str, str, float]] = []
    for entity in knowledge.entities.values():
        lines = profile_lines(entity)
        rng.shuffle(lines)
        drafts.append((entity.name, "\n".join(lines), entity.alias or "", 1.0))
        if entity.archive is not None:
            old = [fact_line(entity.name, label, value) for label, value in entity.archive.items()]
            rng.shuffle(old)
            authority = _ARCHIVE_AHEAD if entity.archive_first else _ARCHIVE_BEHIND
            drafts.append((entity.name + ARCHIVE, "\n".join(old), "", authority))
    drafts += [(group.name, group_text(group), "", 1.0) for group in knowledge.groups]
    ids = page_ids(len(drafts), rng)
    return [
        Document(page_id=page, title=title, text=text, keywords=keywords, authority=authority)
        for page, (title, text, keywords, authority) in zip(ids, drafts, strict=True)
    ]
