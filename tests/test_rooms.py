"""The import graph: no cycles between modules or rooms, few rooms, and few files per room.

A room is a folder of a package with all below it (``parl/learn``); a module beside the rooms is its own room.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("model", "envs", "rollouts", "rewards", "parl")
ROOMS, FILES = 15, 12
# Cycles still to be removed; a removed cycle must be deleted here too.
LEFT: dict[frozenset[str], str] = {}
Graph = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Dotted name -> file."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def imported(text: str, known: Iterable[str]) -> set[str]:
    """Those of ``known`` that a module imports anywhere, except under TYPE_CHECKING."""
    tree, found, known = ast.parse(text), set(), set(known)
    hints = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    unread = {id(inner) for node in hints for inner in ast.walk(node)}
    for node in (node for node in ast.walk(tree) if id(node) not in unread):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner if inner <= known else {node.module, *(inner & known)}
    return found & known


def module_graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imported(file.read_text(), files) - {name} for name, file in files.items()}


def room_of(module: str) -> str:
    return "/".join(module.split(".")[:2])


def room_graph(graph: Graph) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for module, others in graph.items():
        rooms.setdefault(room_of(module), set()).update(room_of(other) for other in others)
    return {room: others - {room} for room, others in rooms.items()}


def circles(graph: Graph) -> list[frozenset[str]]:
    """Groups of nodes that reach each other."""

    def reached(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for other in graph.get(todo.pop(), set()) - seen:
                seen.add(other)
                todo.append(other)
        return seen

    reach = {node: reached(node) for node in graph}
    inside = [node for node in graph if node in reach[node]]
    return list(dict.fromkeys(frozenset(b for b in reach[a] if a in reach.get(b, ())) for a in inside))


def test_no_circle_of_modules_or_of_rooms_but_those_that_are_known():
    modules = module_graph()
    rooms = {room: others for room, others in room_graph(modules).items() if room.startswith("parl")}
    found = {*circles(modules), *circles(rooms)}
    assert not found - LEFT.keys(), f"new circles: {[sorted(circle) for circle in found - LEFT.keys()]}"
    assert not LEFT.keys() - found, f"mended, take it out of LEFT: {[sorted(c) for c in LEFT.keys() - found]}"


def test_parl_has_few_rooms_and_each_room_few_files():
    rooms = [folder for folder in (ROOT / "parl").iterdir() if (folder / "__init__.py").exists()]
    assert len(rooms) <= ROOMS, sorted(folder.name for folder in rooms)
    folders: dict[Path, list[str]] = {}
    for file in modules().values():
        if file.name != "__init__.py":
            folders.setdefault(file.parent, []).append(file.name)
    full = {str(folder.relative_to(ROOT)): len(files) for folder, files in folders.items() if len(files) > FILES}
    assert not full


@pytest.mark.parametrize(
    ("graph", "wanted"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"a"}}, [{"a", "b"}]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"d"}}, [{"a", "b", "c"}, {"d", "e"}]),
    ],
)
def test_circles_are_found(graph: Graph, wanted: list[set[str]]):
    assert sorted(map(sorted, circles(graph))) == sorted(map(sorted, wanted))


def test_what_type_checkers_alone_read_is_no_import():
    text = "if TYPE_CHECKING:\n    import a.b\nimport c\ndef f():\n    from a import d\n"
    assert imported(text, {"a", "a.b", "a.d", "c"}) == {"c", "a.d"}
