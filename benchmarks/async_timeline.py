"""Utilisation of learner and engines in runs, step by step: a table, and a picture of some steps.

    python benchmarks/async_timeline.py runs/quickstart runs/async
    python benchmarks/async_timeline.py runs/quickstart runs/async --svg docs/images/async-timeline.svg --steps 4

Reads ``timeline.jsonl`` of each run folder (``parl.run.timeline``). A share is busy time over the wall time
of all spans; ``both`` is the mean of the learner's and the policy engine's shares. The first step is left
out: nothing overlaps it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from parl.run.timeline import POOLS, shares

LANES = ("learner", *POOLS)
NAMES = {"learner": "learner", "policy": "policy engine", "frozen": "frozen engine"}
COLOURS = {"learn": "#2f6fb0", "collect": "#b9c4cf", "sync": "#d08a2e", "save": "#8a6fb0"}
LEFT, WIDTH, LANE, GAP = 130, 900, 18, 6

Span = dict[str, Any]


def read(folder: Path) -> list[Span]:
    """The spans of a run's last uninterrupted stretch, without its first step."""
    path = folder / "timeline.jsonl"
    if not path.is_file():
        sys.exit(f"{path} is not there: train the run first")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number in range(len(rows) - 1, 0, -1):  # a resumed run does its last steps again
        if rows[number]["step"] < rows[number - 1]["step"]:
            rows = rows[number:]
            break
    return [row for row in rows if row["step"] > rows[0]["step"] + (rows[0]["what"] == "save")]


def table(runs: dict[str, list[Span]]) -> str:
    """One row per run."""
    head = ["run", "steps", "s/step", "learner", "policy engine", "frozen engine", "both"]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    for name, spans in runs.items():
        steps = {span["step"] for span in spans}
        busy = shares(spans)
        both = (busy["learner"] + busy["policy"]) / 2
        seconds = sum(span["end"] - span["start"] for span in spans) / max(len(steps), 1)
        cells = [name, str(len(steps)), f"{seconds:.1f}", *(f"{busy[lane]:.2f}" for lane in LANES), f"{both:.2f}"]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def picture(runs: dict[str, list[Span]], steps: int) -> str:
    """An SVG: the last ``steps`` steps of each run, a lane for the learner and each pool, one scale of seconds."""
    cut = {name: [s for s in spans if s["step"] > spans[-1]["step"] - steps] for name, spans in runs.items()}
    longest = max(spans[-1]["end"] - spans[0]["start"] for spans in cut.values())
    out: list[str] = []
    y = 10
    for name, spans in cut.items():
        out.append(f'<text x="0" y="{y + 13}" font-weight="bold">{name}</text>')
        y += 22
        for lane in LANES:
            out.append(f'<text x="0" y="{y + 13}">{NAMES[lane]}</text>')
            out += [_bar(span, spans[0]["start"], longest, lane, y) for span in spans]
            y += LANE + GAP
        for span in spans:
            if span["what"] == "sync":
                x = LEFT + WIDTH * (span["end"] - spans[0]["start"]) / longest
                top = y - 3 * (LANE + GAP)
                out.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{y - GAP}" stroke="#444" />')
        y += 12
    ticks = [round(longest * part / 5, 1) for part in range(6)]
    out += [f'<text x="{LEFT + WIDTH * t / longest:.0f}" y="{y + 8}">{t:g} s</text>' for t in ticks]
    note = "blue: learning; grey: share of the span in which the engine computed; line: new weights are served"
    out.append(f'<text x="{LEFT}" y="{y + 26}">{note}</text>')
    size = f'width="{LEFT + WIDTH + 50}" height="{y + 36}" viewBox="0 0 {LEFT + WIDTH + 50} {y + 36}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(out) + "\n</svg>\n"


def _bar(span: Span, start: float, longest: float, lane: str, y: int) -> str:
    x, width = LEFT + WIDTH * (span["start"] - start) / longest, WIDTH * (span["end"] - span["start"]) / longest
    if lane == "learner":
        share, colour = float(span["what"] in ("learn", "sync", "save")), COLOURS[span["what"]]
    else:
        share, colour = span[lane], "#5d6b78"
    height = LANE * share
    return (
        f'<rect x="{x:.1f}" y="{y + LANE - height:.1f}" width="{max(width, 0.3):.1f}" height="{height:.1f}"'
        f' fill="{colour}"><title>step {span["step"]}: {span["what"]}, busy {share:.2f}</title></rect>'
    )


def main() -> None:
    """Print the table, and write the picture where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--svg", type=Path, help="write the picture here")
    parser.add_argument("--steps", type=int, default=4, help="steps of each run in the picture")
    arguments = parser.parse_args()
    runs = {folder.name: read(folder) for folder in arguments.runs}
    print(table(runs))
    if arguments.svg:
        arguments.svg.write_text(picture(runs, arguments.steps))


if __name__ == "__main__":
    main()
