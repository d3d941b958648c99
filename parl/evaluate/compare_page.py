"""``parl compare -o``: the comparison as one self-contained page in the report's style, with SVG plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from model.files import write_text
from parl.evaluate.compare_table import METRICS, verdict
from parl.evaluate.measures import shown
from parl.evaluate.statistics import Interval

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 480, 300, 52, 16, 14, 42
_ROW, _NAMES = 30, 120  # forest plot: height of a row, width of the names
_COLORS = 6  # --c0 to --c5 of the style sheet


def write_page(result: dict[str, Any], out: Path) -> Path:
    """Write the page about ``parl.evaluate.compare.compare``'s result to ``out`` and return it."""
    return write_text(out, render(result))


def render(result: dict[str, Any]) -> str:
    """The page as a string. No script, no network; all names are escaped."""
    css = (files("parl.report") / "assets" / "report.css").read_text(encoding="utf-8")
    rows = result["pareto"]
    plots = "".join(
        _card(f"Score against {name.replace('_', ' ')}", _scatter(rows, name), rows) for name in _AXES if rows
    )
    pairs = "".join(_pair(pair) for pair in result["pairs"])
    title = " · ".join(result["policies"])
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{escape(title)} · parl compare</title>
<style>{css}</style>
</head>
<body>
<header><p class="brand">parl compare</p><h1>{escape(title)}</h1></header>
<main>
<h2>Trade-offs</h2>
<div class="grid">{plots}</div>
<p class="legend-note">Means over the tasks that all have, with 95 % intervals. Filled: on the Pareto front of score,
critical steps and sampled tokens. Up and to the left is better.</p>
{pairs}
</main>
</body>
</html>
"""


_AXES = ("critical_steps", "sampled_tokens")


def _card(title: str, svg: str, rows: Sequence[dict[str, Any]]) -> str:
    names = "".join(
        f'<span style="--c: var(--c{i % _COLORS})">{escape(r["policy"])}</span>' for i, r in enumerate(rows)
    )
    return f'<div class="card"><h3>{escape(title)}</h3><div class="legend">{names}</div>{svg}</div>'


def _scatter(rows: Sequence[dict[str, Any]], name: str) -> str:
    x_at, x_ticks = axis([row[name] for row in rows], _LEFT, _WIDTH - _RIGHT, zero=True)
    y_at, y_ticks = axis([row["score"] for row in rows], _HEIGHT - _BOTTOM, _TOP)
    bottom = _HEIGHT - _BOTTOM
    parts = [
        f'<line x1="{x_at(x):.1f}" x2="{x_at(x):.1f}" y1="{_TOP}" y2="{bottom}" stroke="var(--grid)"/>'
        f'<text x="{x_at(x):.1f}" y="{bottom + 16}" text-anchor="middle">{x:g}</text>'
        for x in x_ticks
    ]
    parts += [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y_at(y):.1f}" y2="{y_at(y):.1f}" stroke="var(--grid)"/>'
        f'<text x="{_LEFT - 6}" y="{y_at(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        for y in y_ticks
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">{name.replace("_", " ")}</text>')
    for number, row in enumerate(rows):
        score, cost, color = row["score"], row[name], f"var(--c{number % _COLORS})"
        x, y = x_at(cost.value), y_at(score.value)
        text = f"{row['policy']}: score {shown(score)}, {name.replace('_', ' ')} {shown(cost, 1)}"
        ends = [f"{at(end):.1f}" for at, i in ((x_at, cost), (y_at, score)) for end in finite(i)]
        parts.append(
            f'<g stroke="{color}" stroke-width="2"><title>{escape(text)}</title>'
            f'<line x1="{ends[0]}" x2="{ends[1]}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{ends[2]}" y2="{ends[3]}"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" fill="{color if row["front"] else "var(--card)"}"/></g>'
        )
    label = f"score against {name.replace('_', ' ')}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _pair(pair: dict[str, Any]) -> str:
    heading = f"{escape(pair['b'])} against {escape(pair['a'])}"
    counts = f"{len(pair['improvements'])} tasks better, {len(pair['regressions'])} worse, of {pair['tasks']}"
    return f"""<h2>{heading}</h2>
{_forest(pair)}
<p class="legend-note">{counts}; 95 % intervals over tasks, paired.</p>
{_differences(pair)}{_changes(pair, "regressions")}{_changes(pair, "improvements")}"""


def _forest(pair: dict[str, Any]) -> str:
    """The differences of score; empty without scores."""
    groups = {name: row for name, row in pair["groups"].items() if "score" in row}
    if not groups:
        return ""
    height = _ROW * len(groups) + 34
    intervals = [row["score"]["difference"] for row in groups.values()]
    at, ticks = axis([*intervals, Interval(0, 0, 0)], _NAMES, _WIDTH * 2 - _RIGHT)
    bottom = height - 28
    parts = [
        f'<line x1="{at(x):.1f}" x2="{at(x):.1f}" y1="4" y2="{bottom}" stroke="var(--{"soft" if x == 0 else "grid"})"/>'
        f'<text x="{at(x):.1f}" y="{bottom + 18}" text-anchor="middle">{x:g}</text>'
        for x in sorted({*ticks, 0.0})
    ]
    colors = {"better": "var(--trained)", "worse": "var(--bad)", "-": "var(--soft)"}
    for number, (name, interval) in enumerate(zip(groups, intervals, strict=True)):
        y, color = 4 + _ROW * (number + 0.5), colors[verdict(interval, better=1)]
        low, high = finite(interval)
        parts.append(
            f'<text class="lane" x="0" y="{y + 4:.1f}">{escape(name.replace("_", " "))}</text>'
            f'<g stroke="{color}" stroke-width="2"><title>{escape(name)}: {shown(interval)}</title>'
            f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<circle cx="{at(interval.value):.1f}" cy="{y:.1f}" r="5" fill="{color}"/></g>'
        )
    label = "difference of score by group of tasks"
    svg = f'<svg viewBox="0 0 {_WIDTH * 2} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    told = f"<p>right of the line: {escape(pair['b'])} is better</p>"
    return f'<div class="card"><h3>Difference of score by group of tasks</h3>{told}\n{svg}</div>'


def _differences(pair: dict[str, Any]) -> str:
    head = "".join(f'<th scope="col">{name.replace("_", " ")}</th>' for name in METRICS)
    body = ""
    for group, row in pair["groups"].items():
        cells = "".join(f"<td>{_moved(row.get(name), digits)}</td>" for name, digits in METRICS.items())
        body += f'<tr><th scope="row">{escape(group.replace("_", " "))} ({row["tasks"]})</th>{cells}</tr>'
    return f'<div class="scroll"><table><thead><tr><th scope="col">tasks</th>{head}</tr></thead>{body}</table></div>'


def _moved(cell: dict[str, Any] | None, digits: int) -> str:
    if cell is None:
        return "–"
    a, b = (f"{cell[side].value:,.{digits}f}" for side in ("a", "b"))
    return f"{a} → {b}<br><small>{shown(cell['difference'], digits)}</small>"


def _changes(pair: dict[str, Any], kind: str) -> str:
    rows = pair[kind]
    if not rows:
        return ""
    body = ""
    for row in rows:
        a, b = (sum(scores) / len(scores) for scores in row["scores"])
        steps = " → ".join(f"{steps:.1f}" for steps in row["critical_steps"])
        refs = "".join(f"<td>{escape(', '.join(refs))}</td>" for refs in row["episodes"])
        name = f"{escape(row['task'])} <small>{escape(row['family'])}, width {row['width']}</small>"
        body += f'<tr><th scope="row">{name}</th><td>{a:.2f} → {b:.2f}</td><td>{steps}</td>{refs}</tr>'
    names = ("task", "score", "critical steps", pair["a"], pair["b"])
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead>{body}</table></div>'
    return f"<h3>{kind.capitalize()}: {len(rows)}</h3>{table}"


def finite(interval: Interval) -> tuple[float, float]:
    """The ends; the value itself if one is not finite (a single task)."""
    low, high = (end if abs(end) < float("inf") else interval.value for end in (interval.low, interval.high))
    return low, high


def axis(
    intervals: Sequence[Interval], start: float, end: float, *, zero: bool = False
) -> tuple[Callable[[float], float], list[float]]:
    """(value -> position between ``start`` and ``end``, tick values) for a plot of ``intervals``."""
    ends = [end for interval in intervals for end in finite(interval)] + ([0.0] if zero else [])
    low, high = min(ends), max(ends)
    span = (high - low) or max(abs(high), 1.0)
    power = 10.0 ** math.floor(math.log10(span / 4))
    unit = next(power * step for step in (1, 2, 5, 10) if span / (power * step) <= 6)
    first, last = int(low // unit), int(-(-high // unit))
    ticks = [round(unit * i, 10) for i in range(first, last + 1)]
    low, high = ticks[0], ticks[-1] if ticks[-1] > ticks[0] else ticks[0] + unit
    return (lambda value: start + (value - low) / (high - low) * (end - start)), ticks
