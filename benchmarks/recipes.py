"""The figures in the heads of `configs/recipes`: what the `parl plan` commands there print.

    python benchmarks/recipes.py [--write]

Prints each recipe's commands with their figures; `--write` puts these below the commands. The published `config.json`
of the models come from `tests/data`, as `models/NAME` of a temporary folder. Exit code 1 if a head says otherwise.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "configs" / "recipes"
MODELS = {"Kimi-K2.5": ROOT / "tests/data/kimi"} | {
    path.name: path for path in (ROOT / "tests/data/models").iterdir() if path.is_dir()
}
COMMAND, FIGURE = "#   parl plan ", "#     "
ROWS = ("memory", "host memory of a node", "step, at least", "its peak", "host memory of a rank")


@contextmanager
def downloaded() -> Iterator[Path]:
    """A working directory with the models' shapes in ``models``."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "models").mkdir()
        for name, folder in MODELS.items():
            (Path(made) / "models" / name).symlink_to(folder)
        os.chdir(made)
        try:
            yield Path(made)
        finally:
            os.chdir(before)


def figures(command: str) -> list[str]:
    """``ROWS`` of what ``parl plan`` prints; ``command``: its arguments."""
    from parl.cli.main import app

    done = CliRunner().invoke(app, ["plan", *command.split()], env={"COLUMNS": "200"})
    if done.exit_code:
        raise SystemExit(f"parl plan {command}: {done.stderr}")
    cells = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in done.stdout.splitlines()]
    found = {row[0]: row[1] for row in cells if len(row) == 2}
    return [f"{name}: {found[name]}" for name in ROWS if name in found]


def with_figures(text: str) -> str:
    """A recipe with the figures of today below its commands."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(FIGURE):
            continue
        lines.append(line)
        if line.startswith(COMMAND):
            lines += [f"{FIGURE}{figure}" for figure in figures(line.removeprefix(COMMAND))]
    return "\n".join(lines) + "\n"


def main() -> int:
    """0 if the heads say what is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    write, wrong = parser.parse_args().write, 0
    with downloaded():
        for file in sorted(RECIPES.glob("*.yaml")):
            text = file.read_text()
            now = with_figures(text)
            if write:
                file.write_text(now)
            elif now != text:
                wrong += 1
            print(f"{file.name}{'' if now == text else ': written' if write else ': WRONG'}")
            print("\n".join(line for line in now.splitlines() if line.startswith((COMMAND, FIGURE))))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
