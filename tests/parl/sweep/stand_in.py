"""Stands in for the process of a cell: ``python stand_in.py ORDER``. It writes an outcome without training.

What it does beside that is in the file ``behaviour.json`` of the current folder: cell -> fail, hang or nothing. Each
start is noted in ``started.txt``. It imports nothing of ours, so that it starts at once.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

SCORES = {"1e-4": 0.5, "2e-4": 0.7, "3e-4": 0.7}


def main() -> None:
    """Read the order, behave, write the outcome."""
    file = Path(sys.argv[1])
    order = json.loads(file.read_text(encoding="utf-8"))
    with Path("started.txt").open("a", encoding="utf-8") as out:
        out.write(order["id"] + "\n")
    behaviour = json.loads(Path("behaviour.json").read_text(encoding="utf-8"))
    print(f"working on {order['id']}", flush=True)
    match behaviour.get(order["id"]):
        case "fail":
            print("(Worker pid=1) something")
            raise RuntimeError(f"no luck with {order['id']}")
        case "mistake":
            print("error: trainer.steps is too few")
            sys.exit(2)
        case "hang":
            time.sleep(600)
    lr = next((text.partition("=")[2] for text in order["overrides"] if text.startswith("optimizer.lr=")), "")
    scores = {"final": SCORES[lr]} if order["trial"] else {}
    outcome = {"key": order["key"], "wall_s": 1.0, "checkpoint": "final" if scores else "", "scores": scores}
    done = file.parent.parent / "done" / file.name
    done.parent.mkdir(exist_ok=True)
    done.write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
