"""What is true in the corpus: values of countries, who is whose neighbour, partner or author.

Every value is taken from the packages' own fields, and kept only if the independent reader finds it in the page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from envs.research.corpus import Page
from envs.research.factbook import reader
from envs.research.factbook.fields import FIELDS, gold
from envs.research.factbook.pages import Article, Country, country_name, plain, text_at

LEAST = 25  # values that a country needs to be asked about
BORDER, EXPORT, IMPORT = "longest land border", "largest export partner", "largest import partner"
AUTHOR, PLACE, BORN = "author", "country", "year of birth"
LINES = {BORDER: "border countries", EXPORT: "exports partners", IMPORT: "imports partners"}  # words of a hop's line
SECTIONS = {BORDER: "Geography", EXPORT: "Economy", IMPORT: "Economy"}
_LIST_PATH = {
    BORDER: "Geography/Land boundaries/border countries",
    EXPORT: "Economy/Exports - partners",
    IMPORT: "Economy/Imports - partners",
}
OTHER_NAMES = {
    "United States": ("USA", "US", "United States of America"),
    "United Kingdom": ("UK", "Britain", "Great Britain"),
    "United Arab Emirates": ("UAE",),
    "Burma": ("Myanmar",),
    "North Macedonia": ("Macedonia",),
    "Côte d'Ivoire": ("Cote d'Ivoire", "Ivory Coast"),
    "Democratic Republic of the Congo": ("DRC", "Congo, Democratic Republic of the"),
    "Republic of the Congo": ("Congo", "Congo, Republic of the"),
    "Eswatini": ("Swaziland",),
    "Cabo Verde": ("Cape Verde",),
    "Czechia": ("Czech Republic",),
    "Holy See": ("Vatican City", "Holy See (Vatican City)"),
    "Turkey": ("Turkey (Turkiye)", "Turkiye", "Türkiye"),
    "The Gambia": ("Gambia",),
    "The Bahamas": ("Bahamas",),
    "Federated States of Micronesia": ("Micronesia",),
    "Timor-Leste": ("East Timor",),
    "Curacao": ("Curaçao",),
    "Netherlands": ("Holland",),
    "Sao Tome and Principe": ("Sao Tome & Principe", "São Tomé and Príncipe"),
    "Bosnia and Herzegovina": ("Bosnia & Herzegovina",),
    "Trinidad and Tobago": ("Trinidad & Tobago",),
    "Antigua and Barbuda": ("Antigua & Barbuda",),
    "South Korea": ("Korea, South", "Republic of Korea"),
    "North Korea": ("Korea, North",),
    "Russia": ("Russian Federation",),
    "Macau": ("Macao",),
}


@dataclass(slots=True, kw_only=True)
class Facts:
    """``values``: (name, label) -> gold and other spellings. ``hops``: (name, hop) -> name. ``members``: neighbours.

    ``dropped``: values that the reader did not find in the page. ``pages``: by title.
    """

    pages: Mapping[str, Page]
    values: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    hops: dict[tuple[str, str], str] = field(default_factory=dict)
    members: dict[str, list[str]] = field(default_factory=dict)
    countries: list[str] = field(default_factory=list)
    works: list[str] = field(default_factory=list)
    people: list[str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def other_names(self, name: str) -> tuple[str, ...]:
        """Other accepted names of a country."""
        return OTHER_NAMES.get(name, ())


def find_facts(countries: Mapping[str, Country], articles: Mapping[str, Article], pages: Iterable[Page]) -> Facts:
    """All facts that both the packages' fields and the pages' text state."""
    facts = Facts(pages={page.title: page for page in pages})
    names = {country_name(code, country): country for code, country in countries.items()}
    for name, country in names.items():
        _add_values(facts, name, country)
    held = {name: sum(1 for owner, _ in facts.values if owner == name) for name in names}
    facts.countries = sorted(
        n for n in names if held[n] >= LEAST and (n, "population (total)") in facts.values and n not in _GROUPS
    )
    resolve = _resolver(names)
    for name in facts.countries:
        _add_hops(facts, name, names[name], resolve)
    _add_works(facts, articles)
    _add_places(facts, articles, resolve)
    return facts


_GROUPS = ("World", "European Union")


def _add_values(facts: Facts, name: str, country: Country) -> None:
    for each in FIELDS:
        found = gold(country, each)
        page = facts.pages.get(f"{name}: {each.section}")
        if found is None or page is None:
            continue
        line = reader.line_of(page.text, each.label)
        if line is not None and reader.same(found[0], line, each.kind):
            facts.values[name, each.label] = found
        else:
            facts.dropped.append(f"{name}: {each.label}: {found[0]!r}, the page says {(line or 'nothing')[:80]!r}")


def _resolver(names: Iterable[str]) -> dict[str, str]:
    known = {reader.known_as(name): name for name in names}
    for name, others in OTHER_NAMES.items():
        known |= {reader.known_as(other): name for other in others if reader.known_as(other) not in known}
    return known


def _add_hops(facts: Facts, name: str, country: Country, resolve: Mapping[str, str]) -> None:
    """The greatest of each list by the JSON, if the page's line gives the same and it is a country to ask about."""
    asked = set(facts.countries)
    for hop, path in _LIST_PATH.items():
        given = re.findall(_PARTS[hop], re.sub(r"\([^)]*\)", "", text_at(country, path)))
        pairs = [(part.strip(), float(number.replace(",", ""))) for part, number in given]
        page = facts.pages.get(f"{name}: {SECTIONS[hop]}")
        line = reader.line_of(page.text, LINES[hop]) if page else None
        read = (reader.borders if hop == BORDER else reader.partners)(line or "")
        if [(a, float(b)) for a, b in read] != pairs or not pairs:
            if pairs:
                facts.dropped.append(f"{name}: {hop}: {pairs[:2]}, the page says {(line or 'nothing')[:80]!r}")
            continue
        target = resolve.get(reader.known_as(reader.greatest(read) or ""))
        if target in asked and target != name:
            facts.hops[name, hop] = target
        members = [resolve.get(reader.known_as(part)) for part, _ in pairs]
        if hop == BORDER and len(set(members)) == len(pairs) and all(member in asked for member in members):
            facts.members[name] = [member for member in members if member is not None]


_PARTS = {
    BORDER: r"(?:^|; )([^;\d]+?) ([\d,]+(?:\.\d+)?) km(?=$|;| )",
    EXPORT: r"(?:^|, )([^,\d]+?) (\d+(?:\.\d+)?)%",
    IMPORT: r"(?:^|, )([^,\d]+?) (\d+(?:\.\d+)?)%",
}


def _add_works(facts: Facts, articles: Mapping[str, Article]) -> None:
    """Works whose description names an author with an article, and the authors' years of birth."""
    for title, article in articles.items():
        years = re.search(r"\((?:born )?(\d{4})(?:[–-]\d{4})?\)$", plain(article.get("description") or ""))
        if years and (article.get("topic") in ("People", "Uncategorized")) and born_in(facts, title) == years[1]:
            facts.values[title, BORN] = (years[1], ())
            facts.people.append(title)
    people = set(facts.people)
    for title, article in articles.items():
        by = re.search(r"\bby ([^,(]+?)$", plain(article.get("description") or ""))
        if by and by[1] in people and title in facts.pages and author_on(facts.pages[title].text) == by[1]:
            facts.hops[title, AUTHOR] = by[1]
            facts.works.append(title)


def born_in(facts: Facts, title: str) -> str | None:
    """The year of birth on a person's page: the first of four digits in the bracket that ends its description."""
    page = facts.pages.get(title)
    return birth_year(page.text) if page else None


def birth_year(text: str) -> str | None:
    """The same, of the page's text."""
    described = text.partition("\n")[0]
    if not described.endswith(")") or "(" not in described:
        return None
    inside = described[described.rindex("(") + 1 : -1].replace("born", "").replace("-", "–").split("–")
    years = [each.strip() for each in inside]
    good = all(len(each) == 4 and each.isdigit() for each in years) and len(years) <= 2
    return years[0] if good else None


def author_on(text: str) -> str | None:
    """Who a work is by, as the description in the page's first line ends."""
    described = text.partition("\n")[0]
    return described.rpartition(" by ")[2] if " by " in f" {described}" else None


def country_on(text: str) -> str | None:
    """The last name of the description of a place: ``City in Turkey``, ``City in Gujarat, India``."""
    described = text.partition("\n")[0]
    for word in (" in ", " of "):
        if word in described:
            return described.rpartition(word)[2].rpartition(", ")[2].removeprefix("the ")
    return None


def _add_places(facts: Facts, articles: Mapping[str, Article], resolve: Mapping[str, str]) -> None:
    """Cities whose description ends with a country's name."""
    asked = set(facts.countries)
    for title, article in articles.items():
        described = plain(article.get("description") or "")
        match = re.fullmatch(
            r"(?:[\w ]*\b)?(?:[Cc]ity|[Tt]own|[Cc]apital|[Mm]etropolis)\b[^,]* (?:in|of) (.+)", described
        )
        named = re.split(r", | in | of ", match[1])[-1] if match else ""
        country = resolve.get(reader.known_as(named))
        gone = re.search(r"[Aa]ncient|revolutionary", described)  # the place was never in that country
        if gone or country not in asked or title in facts.countries or title not in facts.pages:
            continue
        if resolve.get(reader.known_as(country_on(facts.pages[title].text) or "")) == country:
            facts.hops[title, PLACE] = country
            facts.places.append(title)
