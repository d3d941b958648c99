"""All mutants apply, and a sample of them is killed; ``python tests/mutants.py`` runs all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from mutations.base import Mutant, all_mutants

ROOT = Path(__file__).parents[1]
MUTANTS = all_mutants()
SAMPLE = (
    "rewards/critical-sign",
    "objectives/k25-no-clip",
    "rows/no-baseline",
    "rollouts/main-step-is-free",
    "evaluation/no-widening",
)


def test_every_mistake_can_be_made_in_exactly_one_place_and_no_two_are_the_same():
    problems: list[str] = []
    made: dict[tuple[str, str], str] = {}
    for mutant in MUTANTS:
        try:
            key = mutant.file, mutant.applied(ROOT)
        except (ValueError, OSError, SyntaxError) as error:
            problems.append(str(error))
            continue
        if key in made:
            problems.append(f"{mutant.name} is {made[key]}")
        made[key] = mutant.name
        problems += [f"{mutant.name}: no {test}" for test in mutant.tests if not (ROOT / test.split("::")[0]).is_file()]
    assert not problems, "\n".join(["mend the table of tests/mutations:", *problems])
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 150


def test_a_stale_mistake_is_an_error_and_never_a_success():
    given = {"name": "m", "file": "rewards/parl_reward.py", "tests": ()}
    for old, new in (
        ("no such text", "x"),
        ("return", "pass"),
        ("CRITICAL_MAX = 2.0", "CRITICAL_MAX = 2.0  # the same"),
    ):
        with pytest.raises(ValueError, match=r"m: its text stands|m: it changes nothing"):
            Mutant(old=old, new=new, **given).applied(ROOT)


@pytest.mark.slow
def test_a_sample_is_noticed():
    command = [sys.executable, "tests/mutants.py", "--jobs", "1", "--only", *SAMPLE]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert run.stdout.splitlines()[-1:] == ["5 of 5 mutants killed"], run.stdout + run.stderr
    assert run.returncode == 0
