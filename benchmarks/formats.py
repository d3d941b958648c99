"""Checks exports with the official models of the formats, each in its own environment.

    python benchmarks/formats.py --harbor HARBOR_ENV/bin/python --verifiers VERIFIERS_ENV/bin/python [STORE]

Both need Python 3.12 (``pip install harbor==0.24.0``, ``pip install verifiers==0.4.0``). Their models
validate our files and write them again; our second reading must equal the first. Without STORE it uses the
tests' episode with every field; ``--golden`` keeps both files in tests/data/formats. Exit code 1 if a model
refuses.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from parl.episodes.exchange import whole_episodes
from parl.episodes.formats.common import ExportOptions
from parl.episodes.formats.registry import FORMATS
from parl.episodes.listing import Filter
from rollouts.episode import Episode

GOLDEN = Path("tests/data/formats")
_DEADLINE_S = 600.0
MODELS = {
    "atif": "import json, sys; from harbor.models.trajectories import Trajectory\n"
    "for line in sys.stdin: print(json.dumps(Trajectory.model_validate_json(line).to_json_dict()))",
    "verifiers": "import json, sys; from verifiers.v1.episode import WireEpisode\n"
    "for line in sys.stdin: print(json.dumps(WireEpisode.model_validate_json(line).to_record(float_decimals=None)))",
}


def through(python: str, name: str, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """``documents`` validated and rewritten by the models in the environment of ``python``."""
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    done = subprocess.run(
        [python, "-c", MODELS[name]], input=lines, capture_output=True, text=True, timeout=_DEADLINE_S, check=False
    )
    if done.returncode:
        raise SystemExit(f"{name}: refused\n{done.stderr[-3000:]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def episodes(store: Path | None) -> Iterator[Episode]:
    """Episodes of a store, or the tests' one."""
    if store is not None:
        yield from (episode for _, episode in whole_episodes(store, Filter()))
        return
    sys.path.insert(0, "tests/parl")
    from rich_episode import rich_episode

    yield rich_episode()


def main() -> None:
    """Check, print, exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, nargs="?")
    parser.add_argument("--harbor", help="interpreter with harbor")
    parser.add_argument("--verifiers", help="interpreter with verifiers")
    parser.add_argument("--golden", action="store_true")
    options = parser.parse_args()
    given = list(episodes(options.store))
    for name, python in (("atif", options.harbor), ("verifiers", options.verifiers)):
        if not python:
            print(f"{name}: not checked, no interpreter given")
            continue
        form = FORMATS[name]
        assert form.load is not None
        ours = [document for episode in given for document in form.export(episode, ExportOptions(keep_gold=True))]
        theirs = through(python, name, ours)
        if len(theirs) != len(ours):
            raise SystemExit(f"{name}: {len(ours)} documents written, {len(theirs)} came back")
        for mine, their in zip(ours, theirs, strict=True):
            first, second = (list(form.load(json.loads(json.dumps(d)), Path())) for d in (mine, their))
            if repr(first) != repr(second):
                raise SystemExit(f"{name}: {first[0].task.key}#{first[0].index} reads differently from what they wrote")
        print(f"{name}: {len(ours)} episodes accepted, and read the same from what their models wrote")
        if options.golden:
            GOLDEN.mkdir(parents=True, exist_ok=True)
            (GOLDEN / f"{name}.ours.json").write_text(json.dumps(ours[0], indent=1) + "\n")
            (GOLDEN / f"{name}.json").write_text(json.dumps(theirs[0], indent=1) + "\n")


if __name__ == "__main__":
    main()
