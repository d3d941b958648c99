"""Runs every attack of ``tests/attacks`` and counts by area: the table in docs/security.md.

    python benchmarks/attacks.py [--area NAME] [--json FILE] [--faults FILE]

The last line is ``K of N held``; exits with 1 unless all held. Attacks that the machine cannot run are
counted separately. ``--faults``: results of ``benchmarks/faults.py --json FILE``, instead of running it
again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_FAULTS = "process faults"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from attacks.base import Attack, NotHere, all_attacks  # noqa: E402 - the folders are put on the path above

from benchmarks import faults  # noqa: E402


def attempt(attack: Attack) -> dict[str, str | float]:
    """The outcome of an attack: ``held``, ``not here`` or ``fell``, with its text."""
    began = time.monotonic()
    outcome, said = "held", ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            attack.run(Path(folder))
        except NotHere as lacks:
            outcome, said = "not here", str(lacks)
        except KeyboardInterrupt:
            raise
        except BaseException as fell:  # whatever a try ends in, the others are tried
            outcome, said = "fell", f"{type(fell).__name__}: {fell}"
    seconds = round(time.monotonic() - began, 3)
    return {"area": attack.area, "name": attack.name, "outcome": outcome, "said": said, "seconds": seconds}


def struck(file: Path) -> list[Attack]:
    """The faults, with the results of ``benchmarks/faults.py``."""
    rows = {row["fault"]: faults.Row(**row) for row in json.loads(file.read_text())}

    def ended(name: str, _: Path) -> None:
        if name not in rows:
            raise NotHere(f"{file} has no row of it")
        assert not faults.bad(rows[name]), rows[name]

    return [Attack(area=_FAULTS, name=one.name, run=partial(ended, one.name)) for one in faults.FAULTS]


def main() -> int:
    """Try all, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", help="only this one")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--faults", type=Path, help="rows of benchmarks/faults.py: the runs are not struck again")
    options = parser.parse_args()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # run in the background: the programs tried would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    rows = []
    attacks = list(all_attacks())
    if options.faults:
        attacks = [attack for attack in attacks if attack.area != _FAULTS] + struck(options.faults)
    for attack in attacks:
        if options.area in (None, attack.area):
            rows.append(attempt(attack))
            if rows[-1]["outcome"] != "held":
                print(f"{rows[-1]['outcome']}: {attack.area}: {attack.name}: {rows[-1]['said']}", flush=True)
    counts = Counter((row["area"], row["outcome"]) for row in rows)
    print("\n| area | tried | held | not possible here |\n|---|---|---|---|")
    for area in dict.fromkeys(row["area"] for row in rows):
        held, away = counts[area, "held"], counts[area, "not here"]
        print(f"| {area} | {held + counts[area, 'fell']} | {held} | {away} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    held = sum(row["outcome"] == "held" for row in rows)
    tried = held + sum(row["outcome"] == "fell" for row in rows)
    print(f"{held} of {tried} held")
    return int(held < tried)


if __name__ == "__main__":
    sys.exit(main())
