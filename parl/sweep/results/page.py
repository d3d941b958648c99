"""The results of a sweep for readers: a Markdown table, SVG figures, and one self-contained page. No torch."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from model.files import write_text
from parl import __version__
from parl.evaluate.measures import shown
from parl.sweep.results.figures import bars, curves, interval_of
from parl.sweep.results.measure import COLUMNS
from parl.track.progress import clock

RESULTS, TABLE, PAGE, FIGURES = "results.json", "table.md", "index.html", "figures"
_DIGITS = {
    **dict.fromkeys(("success", "item_f1"), 3),
    **dict.fromkeys(("critical_steps", "makespan_s"), 1),
    **dict.fromkeys(("path_tokens", "total_tokens"), 0),
    **dict.fromkeys(("subagents", "spawn_rate", "direct_parallel_rate"), 2),
}
_BARS = ("success", "item_f1", "critical_steps", "path_tokens", "makespan_s", "total_tokens", "spawn_rate")
_FEWER = ("critical_steps", "path_tokens", "makespan_s", "total_tokens")


def write_results(results: dict[str, Any], folder: Path) -> Path:
    """Write ``results.json``, ``table.md``, ``figures/`` and ``index.html`` to ``folder``; returns the page."""
    write_text(folder / RESULTS, json.dumps(results, indent=1, allow_nan=False) + "\n")
    write_text(folder / TABLE, markdown(results))
    made = figures(results)
    shutil.rmtree(folder / FIGURES, ignore_errors=True)
    for name, svg in made.items():
        write_text(folder / FIGURES / f"{name}.svg", svg)
    return write_text(folder / PAGE, page(results, made))


def keep_results(folder: Path, to: Path, file: Path) -> None:
    """Copy what ``folder`` shows to ``to``, with the sweep's file and the command that makes it again."""
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    to.mkdir(parents=True, exist_ok=True)
    for name in (RESULTS, TABLE, PAGE):
        shutil.copyfile(folder / name, to / name)
    shutil.rmtree(to / FIGURES, ignore_errors=True)
    shutil.copytree(folder / FIGURES, to / FIGURES)
    if file.resolve() != (to / "sweep.yaml").resolve():
        shutil.copyfile(file, to / "sweep.yaml")
    spent = clock(sum(run["wall_s"] for run in results["runs"]))
    write_text(
        to / "README.md",
        f"# {results['sweep']}\n\n    parl sweep {file} --keep {to}\n\n"
        f"Made by parl {__version__} on {os.cpu_count()} cores ({platform.machine()}); {results['done']} of"
        f" {results['cells']} cells, {spent} together. `sweep.yaml` is the sweep's file,"
        f" `{RESULTS}` has all numbers.\n\n" + markdown(results),
    )


def figures(results: Mapping[str, Any]) -> dict[str, str]:
    """SVG files by name."""
    by_metric: dict[str, dict[str, Any]] = {}
    for arm, curves_of in results["curves"].items():
        for metric, rows in curves_of.items():
            by_metric.setdefault(metric, {})[arm] = rows
    made = {f"curve-{metric.replace('/', '-')}": curves(by_arm, metric) for metric, by_arm in by_metric.items()}
    arms = list(dict.fromkeys(row["arm"] for row in results["rows"]))
    for name in _BARS:
        if any(row[name] is not None for row in results["rows"]):
            made[f"bars-{name.replace('_', '-')}"] = bars(results["rows"], name, arms)
    return made


def about(results: Mapping[str, Any]) -> str:
    """What the numbers are, in a sentence or two."""
    parts = [
        f"{results['tasks']} tasks of split {results['split']}",
        f"{results['done']} of {results['cells']} cells",
        f"{results['cold_starts']} cold starts" if results["cold_starts"] > 1 else "one cold start",
    ]
    said = f"{', '.join(parts)}. 95 % intervals over cold starts and tasks (crossed bootstrap, docs/sweeps.md)."
    if results["done"] < results["cells"]:
        said += " Cells are missing: these are the numbers of what is done."
    if results["only_common"]:
        said += " Some cells have more tasks; only those that all have count."
    return said


def columns(results: Mapping[str, Any]) -> list[str]:
    """The columns that some row has."""
    return [name for name in COLUMNS if any(row[name] is not None for row in results["rows"])]


def markdown(results: Mapping[str, Any]) -> str:
    """The tables: means by group and arm, then differences from the reference."""
    names = columns(results)
    head = ["tasks", "arm", *(name.replace("_", " ") for name in names)]
    lines = [about(results), "", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    before = ""
    for row in results["rows"]:
        group = "" if row["group"] == before else f"{row['group'].replace('_', ' ')} ({row['tasks']})"
        before = row["group"]
        cells = [_cell(row[name], _DIGITS[name], whole=name in ("success", "item_f1", *_FEWER)) for name in names]
        lines.append(f"| {' | '.join([group, row['arm'], *cells])} |")
    if results["differences"]:
        lines += ["", f"Against {results['reference']}, paired by task and run (costs: the arm's divided by its):", ""]
        head = ["tasks", "arm", *(name.replace("_", " ") for name in _compared(results))]
        lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for row in results["differences"]:
            cells = [_moved(row[name], name) for name in _compared(results)]
            lines.append(f"| {' | '.join([row['group'].replace('_', ' '), row['arm'], *cells])} |")
    for arm, told in results.get("chosen", {}).items():
        picked = ", ".join(f"{key}={value}" for key, value in told["chosen"].items())
        scores = "; ".join(_trial(one) for one in told["scores"])
        lines += ["", f"{arm}: {picked}, chosen on val ({scores})."]
    return "\n".join(lines) + "\n"


def _trial(one: Mapping[str, Any]) -> str:
    return f"{', '.join(str(value) for key, value in one.items() if key != 'score')}: {one['score']:.3f}"


def _compared(results: Mapping[str, Any]) -> list[str]:
    return [name for name in _BARS if any(row.get(name) for row in results["differences"])]


def _cell(cell: Mapping[str, Any] | None, digits: int, *, whole: bool) -> str:
    if cell is None:
        return "–"
    return shown(interval_of(cell), digits) if whole else f"{cell['value']:.{digits}f}"


def _moved(cell: Mapping[str, Any] | None, name: str) -> str:
    if not cell:
        return "–"
    if (ratio := cell.get("ratio")) is not None:
        return f"× {shown(interval_of(ratio), 2)}"
    one = interval_of(cell["difference"])
    return f"{one.value:+.{_DIGITS[name]}f} [{one.low:+.{_DIGITS[name]}f}, {one.high:+.{_DIGITS[name]}f}]"


def page(results: Mapping[str, Any], made: Mapping[str, str]) -> str:
    """The page as a string. No script, no network; all names are escaped."""
    css = (files("parl.report") / "assets" / "report.css").read_text(encoding="utf-8")
    cards = "".join(f'<div class="card">{svg}</div>' for svg in made.values())
    tables = "".join(_html(block) for block in _blocks(markdown(results)))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{escape(results["sweep"])} · parl sweep</title>
<style>{css}</style>
</head>
<body>
<header><p class="brand">parl sweep</p><h1>{escape(results["sweep"])}</h1></header>
<main>
{tables}
<h2>Figures</h2>
<div class="grid">{cards}</div>
<h2>Runs</h2>
{_runs(results["runs"])}
</main>
</body>
</html>
"""


def _blocks(text: str) -> list[list[str]]:
    return [block.splitlines() for block in text.split("\n\n") if block.strip()]


def _html(block: Sequence[str]) -> str:
    """A paragraph or a table of :func:`markdown`."""
    if not block[0].startswith("|"):
        return f'<p class="legend-note">{escape(" ".join(block))}</p>'
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block if not line.startswith("|---")]
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join(f"<tr{' class=group' if row[0] else ''}>{_cells(row)}</tr>" for row in rows[1:])
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cells(row: Sequence[str]) -> str:
    return f'<th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in ("cell", "cold start", "checkpoint", "time"))
    body = "".join(
        f'<tr><th scope="row">{escape(run["cell"])}</th><td>{escape(run["cold"])}</td>'
        f"<td>{escape(run['checkpoint'])}</td><td>{clock(run['wall_s'])}</td></tr>"
        for run in runs
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
