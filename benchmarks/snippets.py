"""Puts files into the code blocks of a page that name them: ```yaml file=examples/functions.yaml.

python benchmarks/snippets.py docs/environments.md      # writes the page; a test compares it with the files
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(\w+) file=(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def filled(page: str) -> str:
    """``page`` with the text of the files that its blocks name."""
    return BLOCK.sub(lambda found: f"```{found[1]} file={found[2]}\n{(ROOT / found[2]).read_text()}```", page)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        Path(name).write_text(filled(Path(name).read_text(encoding="utf-8")), encoding="utf-8")
