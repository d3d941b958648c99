"""What documentation names exists: files, folders, modules, functions, links; complete index."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.rooms import BEGIN, END, listed
from benchmarks.snippets import filled

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "README.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PACKAGES = "model|envs|rollouts|rewards|parl"
FOLDERS = f"{PACKAGES}|benchmarks|tests|configs|docs|examples"
FILE = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./-]*\.(?:py|md|ya?ml|hpp|cpp|jsonl?|jinja|svg|png))\b")
FOLDER = re.compile(rf"`((?:{FOLDERS})/(?:[\w.-]+/)*)`")
NAME = re.compile(rf"(?<![\w/.-])((?:{PACKAGES})(?:\.[A-Za-z]\w*)+)(?!\.?[\w/])")
LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[\w-]*)?\)")
KEY = re.compile(r"^\| `([\w.]+)` \|", re.MULTILINE)
FIELDS = {"parl.episode"}  # of the gateway's answers
FIELDS |= {f"parl.{kind}" for kind in ("environments", "rewards", "objectives", "engines", "families")}  # entry points
pages = pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])


def keys() -> list[str]:
    """The keys in the tables of docs/configuration.md, those of every variant included."""
    return KEY.findall((ROOT / "docs" / "configuration.md").read_text())


def known_keys() -> set[str]:
    """Dotted keys and sections."""
    parts = [key.split(".") for key in keys()]
    return {".".join(part[:count]) for part in parts for count in range(1, len(part) + 1)}


def is_there(name: str) -> bool:
    """Whether a dotted name is a module, a package, or defined in a module."""
    parts = name.split(".")
    for count in range(len(parts), 1, -1):
        file = ROOT.joinpath(*parts[:count]).with_suffix(".py")
        if not file.exists():
            file = ROOT.joinpath(*parts[:count], "__init__.py")
        if file.exists():
            rest = parts[count : count + 1]
            pattern = r"^\s*(?:(?:async )?def|class)\s+{0}\b|^\s*{0}\s*[:=]|^from .*\b{0}\b|^    {0},"
            return not rest or bool(re.search(pattern.format(*rest), file.read_text(), re.MULTILINE))
    return False


@pages
def test_files_and_folders_that_are_named_exist(page: Path):
    text = page.read_text()
    missing = {name for name in (*FILE.findall(text), *FOLDER.findall(text)) if not (ROOT / name).exists()}
    assert not missing


@pages
def test_modules_and_functions_that_are_named_exist(page: Path):
    found = set(NAME.findall(page.read_text())) - known_keys() - FIELDS
    assert not {name for name in found if not is_there(name) and name.rpartition(".")[0] not in known_keys()}


@pages
def test_links_lead_somewhere(page: Path):
    missing = [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()]
    assert not missing


def test_the_list_of_rooms_is_what_the_command_writes():
    text = (ROOT / "docs" / "architecture.md").read_text()
    assert f"{BEGIN}\n{listed()}\n{END}" in text, "python benchmarks/rooms.py --write docs/architecture.md"


def test_every_page_is_in_the_index_once():
    listed = [(INDEX.parent / link).resolve() for link in LINK.findall(INDEX.read_text())]
    own = [page for page in PAGES if page.is_relative_to(INDEX.parent) and page != INDEX]
    assert sorted(page for page in listed if page.is_relative_to(INDEX.parent)) == sorted(own)


def test_contributing_says_how_many_keys_there_are():
    """Keys of every variant count; those of an environment or a model family do not."""
    own = ("envs.config.", "model.")
    core = {key for key in keys() if not key.startswith(own)} | {"model.family", "model.init"}
    assert f"{len(core)} keys" in (ROOT / "CONTRIBUTING.md").read_text(), f"there are {len(core)}"


@pages
def test_blocks_that_name_a_file_are_its_text(page: Path):
    """python benchmarks/snippets.py PAGE writes them."""
    assert filled(page.read_text()) == page.read_text()
