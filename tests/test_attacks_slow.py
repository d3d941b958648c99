"""Attacks that need whole processes, by area; each takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from attacks.base import Attack, NotHere, all_attacks
from test_attacks import SLOW

CASES = [attack for attack in all_attacks() if attack.area in SLOW]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("attack", CASES, ids=[f"{case.area}: {case.name}" for case in CASES])
def test_the_attack_is_held(attack: Attack, tmp_path: Path):
    try:
        attack.run(tmp_path)
    except NotHere as lacks:
        pytest.skip(str(lacks))
