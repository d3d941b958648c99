"""All attacks are withstood; areas that start processes or Ray are in separate slow test modules."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from attacks.base import Attack, NotHere, all_attacks

SLOW = {"process faults", "network", "writers", "torn files", "sandbox levels"}  # minutes: test_attacks_slow.py
CASES = [attack for attack in all_attacks() if attack.area not in SLOW]
DOCUMENT = Path(__file__).parents[1] / "docs" / "security.md"


def test_the_documented_counts_are_those_of_the_cases():
    """benchmarks/attacks.py prints the table; update its row when adding an attack."""
    rows = re.findall(r"^\| ([a-z ]+) \| (\d+) \| \d+ \| \d+ \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    tried = Counter(attack.area for attack in all_attacks())
    assert {area: int(count) for area, count in rows} == tried


@pytest.mark.parametrize("attack", CASES, ids=[f"{case.area}: {case.name}" for case in CASES])
def test_the_attack_is_held(attack: Attack, tmp_path: Path):
    try:
        attack.run(tmp_path)
    except NotHere as lacks:
        pytest.skip(str(lacks))
