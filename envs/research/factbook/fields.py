"""What may be asked of a country: labels, where the Factbook's JSON has them, and what of its text is the gold.

A label's words are those of the page's line, so ``find`` with the label shows it. ``gold`` takes the value out of
the JSON by a pattern; :mod:`envs.research.factbook.reader` reads it again from the page, in another way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from envs.research.factbook.pages import Country, text_at

GEOGRAPHY, PEOPLE, GOVERNMENT, ECONOMY = "Geography", "People and Society", "Government", "Economy"
ENERGY, COMMUNICATIONS, TRANSPORT, ENVIRONMENT = "Energy", "Communications", "Transportation", "Environment"
MILITARY = "Military and Security"

_SHORT_UNIT = 14  # characters of a unit that stays in the gold
_NUMBER = re.compile(r"(-?\$?-?\d[\d,]*(?:\.\d+)?)( (?:million|billion|trillion))?(%)?((?: [^(;\[]*?)?)(?= ?[(;\[]|$)")
_DATE = re.compile(r"(?:(\d{1,2}) )?(?:([A-Z][a-z]+) )?(\d{4})(?= ?[(;]|$)")
_OFFICES = (
    "Acting Captain Chancellor Chief Co-Prince Crown Duke Emir Executive Federal General Governor Governor-General"
    " Grand Interim King Leader Minister Pope Premier President Prime Prince Queen Regent State Sultan Supreme"
    " Taoiseach Transitional of the"
)
_TITLES = frozenset(_OFFICES.split())
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """``label``: as asked. ``path``: in the JSON, its first part the page. ``kind``: how the text is read."""

    label: str
    path: str
    kind: str = "number"

    @property
    def section(self) -> str:
        """The page, such as ``Geography``."""
        return self.path.partition("/")[0]


def _numbers(section: str, paths: dict[str, str]) -> list[Field]:
    return [Field(label=label, path=f"{section}/{path}") for label, path in paths.items()]


def _years(name: str, *years: int) -> dict[str, str]:
    return {f"{name.lower()} {year}": f"{name}/{name} {year}" for year in years}


FIELDS = (
    *_numbers(
        GEOGRAPHY,
        {
            "area (total)": "Area/total ",
            "land boundaries (total)": "Land boundaries/total",
            "coastline": "Coastline",
            "mean elevation": "Elevation/mean elevation",
            "irrigated land": "Irrigated land",
            "land use: forest": "Land use/forest",
            "arable land": "Land use/agricultural land: arable land",
        },
    ),
    *_numbers(
        PEOPLE,
        {
            "population (total)": "Population/total",
            "median age (total)": "Median age/total",
            "birth rate": "Birth rate",
            "death rate": "Death rate",
            "net migration rate": "Net migration rate",
            "total dependency ratio": "Dependency ratios/total dependency ratio",
            "urban population": "Urbanization/urban population",
            "infant mortality rate (total)": "Infant mortality rate/total",
            "life expectancy at birth (total population)": "Life expectancy at birth/total population",
            "total fertility rate": "Total fertility rate",
            "maternal mortality ratio": "Maternal mortality ratio",
            "physician density": "Physician density",
            "hospital bed density": "Hospital bed density",
            "obesity adult prevalence rate": "Obesity - adult prevalence rate",
            "alcohol consumption per capita (total)": "Alcohol consumption per capita/total",
            "tobacco use (total)": "Tobacco use/total",
            "mother's mean age at first birth": "Mother's mean age at first birth",
        },
    ),
    *_numbers(
        GOVERNMENT,
        {
            "total World Heritage Sites": "National heritage/total World Heritage Sites",
            "percentage of women in chamber": "Legislative branch/percentage of women in chamber",
            "number of seats": "Legislative branch/number of seats",
        },
    ),
    *_numbers(
        ECONOMY,
        {
            **_years("Real GDP per capita", 2024, 2023),
            **_years("Real GDP growth rate", 2024),
            **_years("Unemployment rate", 2024),
            **_years("Exports", 2023),
            **_years("Imports", 2023),
            "real GDP (purchasing power parity) 2024": "Real GDP (purchasing power parity)/"
            "Real GDP (purchasing power parity) 2024",
            "inflation rate (consumer prices) 2023": "Inflation rate (consumer prices)/"
            "Inflation rate (consumer prices) 2023",
            "labor force": "Labor force",
            "industrial production growth rate": "Industrial production growth rate",
        },
    ),
    *_numbers(
        ENERGY,
        {
            "installed generating capacity": "Electricity/installed generating capacity",
            "electricity consumption": "Electricity/consumption",
            "refined petroleum consumption": "Petroleum/refined petroleum consumption",
            "total energy consumption per capita 2023": "Energy consumption per capita/"
            "Total energy consumption per capita 2023",
        },
    ),
    *_numbers(
        COMMUNICATIONS,
        {
            "internet users: percent of population": "Internet users/percent of population",
            "mobile cellular (total subscriptions)": "Telephones - mobile cellular/total subscriptions",
        },
    ),
    *_numbers(
        TRANSPORT,
        {
            "airports": "Airports",
            "heliports": "Heliports",
            "railways (total)": "Railways/total",
            "merchant marine (total)": "Merchant marine/total",
            "total ports": "Ports/total ports",
        },
    ),
    *_numbers(
        ENVIRONMENT,
        {
            "particulate matter emissions": "Particulate matter emissions",
            "carbon dioxide emissions (total emissions)": "Carbon dioxide emissions/total emissions",
            "total renewable water resources": "Total renewable water resources",
        },
    ),
    *_numbers(MILITARY, {"military expenditures 2024": "Military expenditures/Military Expenditures 2024"}),
    Field(label="highest point", path="Geography/Elevation/highest point", kind="point"),
    Field(label="lowest point", path="Geography/Elevation/lowest point", kind="point"),
    Field(label="capital (name)", path="Government/Capital/name", kind="name"),
    Field(label="chief of state", path="Government/Executive branch/chief of state", kind="person"),
    Field(label="head of government", path="Government/Executive branch/head of government", kind="person"),
    Field(label="legislature name", path="Government/Legislative branch/legislature name", kind="name"),
    Field(label="independence", path="Government/Independence", kind="date"),
    Field(label="internet country code", path="Communications/Internet country code", kind="name"),
    Field(label="currency", path="Economy/Exchange rates/Currency", kind="currency"),
    Field(
        label="civil aircraft registration country code prefix",
        path="Transportation/Civil aircraft registration country code prefix",
        kind="name",
    ),
)
BY_LABEL = {field.label: field for field in FIELDS}


def gold(country: Country, field: Field) -> tuple[str, tuple[str, ...]] | None:
    """The value and other accepted spellings; None where the text has no single one."""
    text = text_at(country, field.path)
    if not text or text.lower().split()[0].strip(";,") in ("none", "na", "no", "unknown", "see"):
        return None
    own = field.path.rpartition(": ")[2]
    text = text.removeprefix(f"{own}: ").replace("(s)", "s")
    found = _TAKEN[field.kind](text)
    if found is None or "|" in found[0] or not found[0]:
        return None
    value, *others = dict.fromkeys(" ".join(each.split()) for each in found)
    return value, tuple(other for other in others if other and "|" not in other)


def _number(text: str) -> list[str] | None:
    match = _NUMBER.match(text)
    if match is None:
        return None
    amount, scale, percent, unit = match[1], match[2] or "", match[3] or "", match[4].strip()
    if re.search(r"\d", re.sub(r"1,000|100,000|CO2|\b100\b", "", unit)):
        return None
    short = unit and not percent and len(unit) <= _SHORT_UNIT and "/" not in unit
    number = f"{amount}{scale}{percent}"
    return [
        f"{number} {unit}" if short else number,
        match[0].strip(),
        number,
        *_written(amount, scale, unit if short else ""),
    ]


def _written(amount: str, scale: str, unit: str) -> list[str]:
    """The number without separators, and in full where it has a scale."""
    plain = amount.replace(",", "")
    if not scale:
        return [plain, f"{plain} {unit}"] if plain != amount else []
    sign = "$" if "$" in plain else ""
    factor = {"million": 10**6, "billion": 10**9, "trillion": 10**12}[scale.strip()]
    whole, _, part = plain.replace("$", "").lstrip("-").partition(".")
    digits = int(whole + part) * factor // 10 ** len(part)
    minus = "-" if "-" in plain else ""
    return [f"{minus}{sign}{digits:,}", f"{minus}{sign}{digits}", f"{minus}{sign}{digits:,} {unit}".strip()]


def _point(text: str) -> list[str] | None:
    match = re.fullmatch(r"([^;()\d]{3,40}?(?: \([^;()]*\))?) (-?[\d,.]+ m)", text)
    if match is None:
        return None
    bare = re.sub(r" \(.*\)", "", match[1])
    return [match[0], f"{bare} {match[2]}", match[1], bare, f"{match[1]} ({match[2]})", f"{bare} ({match[2]})"]


def _name(text: str) -> list[str] | None:
    """The text before brackets; two capitals are one value that either of them names."""
    parts = [re.sub(r" \([^)]*\)?$| \[[^\]]*\]?$", "", part.strip()) for part in text.split(";")]
    if any(len(part) > 48 or re.search(r"[()\[\]]|\d{4}|note:", part) for part in parts) or len(parts) > 3:
        return None
    joined = [", ".join(parts), " and ".join(parts), " / ".join(parts)] if len(parts) > 1 else [text]
    return [parts[0], *parts[1:], *joined]


def _person(text: str) -> list[str] | None:
    match = re.match(r"([^(;\d]{5,60}?) \(since [^)]*\)", text)
    if match is None or "vacant" in match[1].lower():
        return None
    words = match[1].split()
    while len(words) > 1 and words[0].rstrip(",") in _TITLES:
        words = words[1:]
    return [match[1], " ".join(words)]


def _date(text: str) -> list[str] | None:
    """A single date or year; texts with several are left out."""
    match = _DATE.match(text)
    if match is None or len(re.findall(r"\b\d{4}\b", text)) > 1 or (match[2] and match[2] not in _MONTHS):
        return None
    day, month, year = match.groups()
    if not (day and month):
        return [match[0]]
    number = _MONTHS.index(month) + 1
    return [match[0], f"{month} {day}, {year}", f"{year}-{number:02}-{int(day):02}"]


def _currency(text: str) -> list[str] | None:
    match = re.fullmatch(r"([^(;,/]{3,48}?) \(([A-Z]{3})\) per US dollar -?", text)
    return [match[1], match[2], f"{match[1]} ({match[2]})"] if match else None


_TAKEN = {
    "number": _number,
    "point": _point,
    "name": _name,
    "person": _person,
    "date": _date,
    "currency": _currency,
}
