"""Attacks that need whole processes, by area; each takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from attacks.base import Attack, NotHere, all_attacks
from test_attacks import SLOW

# One fault of each kind: benchmarks/faults.py runs all, 20 s each.
FAULTS = (
    "SIGKILL of a rollout worker",
    "SIGSTOP of the second engine",
    "SIGSTOP of a learner rank",
    "SIGTERM of the driver",
    "full disk",
    "lost GCS",
    "lying inference server",
)
CASES = [one for one in all_attacks() if one.area in SLOW and (one.area != "process faults" or one.name in FAULTS)]


def test_the_faults_that_are_tried_are_there():
    assert {one.name for one in CASES if one.area == "process faults"} == set(FAULTS)


def _case(attack: Attack) -> object:
    """Attacks of one live run, of one batch, and faults with shared runs, stay in one test process, in order."""
    together = (
        [pytest.mark.xdist_group(attack.area)] if attack.area in ("network", "process faults", "sandbox levels") else []
    )
    return pytest.param(attack, id=f"{attack.area}: {attack.name}", marks=together)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("attack", map(_case, CASES))
def test_the_attack_is_held(attack: Attack, tmp_path: Path):
    try:
        attack.run(tmp_path)
    except NotHere as lacks:
        pytest.skip(str(lacks))
