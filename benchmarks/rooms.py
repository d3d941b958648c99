"""The rooms of the code with the first line of each, for docs/architecture.md.

    python benchmarks/rooms.py                                # print them
    python benchmarks/rooms.py --write docs/architecture.md   # put them between the file's markers

A room is a folder with an ``__init__.py``, described by that file's docstring.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator
from pathlib import Path

BEGIN, END = "<!-- rooms:begin -->", "<!-- rooms:end -->"
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("parl", "rollouts", "rewards", "envs", "model")


def rooms() -> Iterator[tuple[Path, str]]:
    """(folder, first line of its docstring) of each room. ValueError: a room has no docstring."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("__init__.py")):
            said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
            if not said:
                raise ValueError(f"{file.relative_to(ROOT)} has no docstring: say in a sentence what the room is for")
            yield file.parent.relative_to(ROOT), said.splitlines()[0]


def listed() -> str:
    """The list as Markdown."""
    lines = []
    for folder, said in rooms():
        said = re.sub(r":\w+:(?=`)", "", said.replace("``", "`"))
        lines.append(f"{'  ' * (len(folder.parts) - 1)}- `{folder.as_posix()}/` {said}")
    return "\n".join(lines)


def main() -> None:
    """Print the list, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the file with the markers")
    options = parser.parse_args()
    if options.write is None:
        print(listed())
        return
    text = options.write.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    options.write.write_text(f"{before}{BEGIN}\n{listed()}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
