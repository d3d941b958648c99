"""Escapes and abuses of the sandbox, at each level that this machine gives, as this user and as no root."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from functools import cache, partial
from pathlib import Path

from attacks.base import Attack, NotHere
from attacks.sandbox_abuses import ABUSES, known_open
from envs.sandbox.levels import LEVELS, reason_against

ROOT = Path(__file__).parents[2]
SYSTEM = "/usr/bin/python3"  # which every user may run, unlike one in root's home
NOBODY = 61000


@cache
def _rows(level: str, user: int) -> dict[str, dict[str, str | bool]]:
    """The results by name, of a process of ``user`` that tries all of them."""
    python, own = sys.executable, user == os.getuid()
    if (reason := reason_against(level, python)) and shutil.which(SYSTEM):
        python, reason = SYSTEM, reason_against(level, SYSTEM)
    if reason:
        raise NotHere(reason)
    if not own and not shutil.which(SYSTEM):
        raise NotHere(f"there is no {SYSTEM} that every user may run")
    if not own and not os.stat("/tmp").st_mode & stat.S_IWOTH:
        raise NotHere("other users may not write to /tmp here")
    run = subprocess.run(
        [python if own else SYSTEM, str(Path(__file__).with_name("sandbox_run.py")), level],
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        **({} if own else {"user": user, "group": user, "extra_groups": []}),
    )
    if "no sandbox of level" in run.stderr:
        raise NotHere(run.stderr.strip().splitlines()[-1])
    assert run.returncode == 0, run.stderr
    return {row["name"]: row for row in map(json.loads, run.stdout.splitlines())}


def _tried(level: str | None, user: int, name: str, folder: Path) -> None:
    if level is None:
        offered = [one for one in LEVELS if not reason_against(one)]
        if not offered:
            raise NotHere("this machine gives no level")
        level = offered[0]
    elif user != os.getuid() and os.getuid() != 0:
        raise NotHere("only root can be another user")
    row = _rows(level, user).get(name)
    if row is None:
        raise NotHere(f"{level}, all that this machine gives, does not hold it")
    assert row["held"], row["said"]


def cases() -> list[Attack]:
    """The strongest level as this user, then at each level what it is said to hold, as root and as a user."""
    me = os.getuid()
    found = [Attack(area="sandbox", name=a.name, run=partial(_tried, None, me, a.name)) for a in ABUSES]
    for level in LEVELS:
        for who, user in (("root", 0), ("a user", me or NOBODY)):
            for abuse in (one for one in ABUSES if not known_open(one, level, user)):
                run = partial(_tried, level, user, abuse.name)
                found.append(Attack(area="sandbox levels", name=f"{abuse.name}, {level} as {who}", run=run))
    return found
