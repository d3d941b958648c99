"""What a mutant is: one small wrong change, and the tests that must fail under it."""

from __future__ import annotations

import ast
import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mutations


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """``old``, which stands once in ``file``, becomes ``new``; ``tests`` are pytest's arguments, files or ids."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, root: Path) -> str:
        """The file's text with the mistake in it. Raises ValueError where it cannot be made."""
        text = (root / self.file).read_text(encoding="utf-8")
        found = text.count(self.old)
        if found != 1:
            raise ValueError(f"{self.name}: its text stands {found} times in {self.file}, not once: {self.old!r}")
        wrong = text.replace(self.old, self.new)
        if ast.dump(ast.parse(wrong)) == ast.dump(ast.parse(text)):
            raise ValueError(f"{self.name}: it changes nothing")
        return wrong

    def diff(self, root: Path) -> str:
        """The mistake as a unified diff of a few lines."""
        pair = (root / self.file).read_text(encoding="utf-8").splitlines(), self.applied(root).splitlines()
        return "\n".join(difflib.unified_diff(*pair, self.file, self.file, lineterm="", n=1))


Add = Callable[[str, str, str], Mutant]  # name, old, new


def mutants_of(area: str, file: str, *tests: str) -> Add:
    """Makes mutants of ``file`` that ``tests`` must kill, named ``area/NAME``."""

    def make(name: str, old: str, new: str) -> Mutant:
        return Mutant(name=f"{area}/{name}", file=file, old=old, new=new, tests=tests)

    return make


def all_mutants() -> list[Mutant]:
    """The tables of every module of this package."""
    found: list[Mutant] = []
    for name in sorted(module.name for module in pkgutil.iter_modules(mutations.__path__)):
        found += getattr(importlib.import_module(f"mutations.{name}"), "MUTANTS", [])
    return found
