"""Figures of a sweep as SVG: learning curves with their range over runs, and bars with intervals. No script, no torch.

Each is a whole file that follows the reader's light or dark colours, also inside a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from parl.evaluate.compare_page import axis
from parl.evaluate.measures import shown
from parl.evaluate.statistics import Interval

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 320, 56, 16, 34, 44
_ROW, _NAMES, _HEAD = 22, 190, 34
_LIGHT = ("#1f6feb", "#12907f", "#8a56d6", "#d1495b", "#b97a00", "#5a6472")
_DARK = ("#5b9dff", "#35c4ae", "#b48cf2", "#f27c8c", "#e3b341", "#98a3b3")


def _style() -> str:
    def colors(values: Sequence[str], soft: str, grid: str) -> str:
        named = "".join(f"--f{i}:{value};" for i, value in enumerate(values))
        return f"{named}--fs:{soft};--fg:{grid};"

    light, dark = colors(_LIGHT, "#5a6472", "#e2e6ec"), colors(_DARK, "#98a3b3", "#2b323c")
    return (
        f"<style>svg.sweep{{{light}}}@media (prefers-color-scheme: dark){{svg.sweep{{{dark}}}}}"
        "svg.sweep text{fill:var(--fs);font:12px system-ui,sans-serif}</style>"
    )


def _svg(width: int, height: int, label: str, parts: Sequence[str]) -> str:
    return (
        f'<svg class="sweep" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        f' aria-label="{escape(label)}">{_style()}{"".join(parts)}</svg>\n'
    )


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], _LEFT
    for number, name in enumerate(names):
        color = f"var(--f{number % len(_LIGHT)})"
        parts.append(f'<rect x="{x}" y="8" width="12" height="12" rx="3" fill="{color}"/>')
        parts.append(f'<text x="{x + 17}" y="18">{escape(name)}</text>')
        x += 34 + 7 * len(name)
    return parts


def curves(by_arm: Mapping[str, Sequence[Sequence[float]]], metric: str) -> str:
    """Lines of means over steps, with the range from the lowest to the highest run. ``[step, mean, low, high]``."""
    intervals = [Interval(mean, low, high) for rows in by_arm.values() for _, mean, low, high in rows]
    steps = [row[0] for rows in by_arm.values() for row in rows]
    y_at, y_ticks = axis(intervals, _HEIGHT - _BOTTOM, _TOP)
    x_at, x_ticks = axis([Interval(step, step, step) for step in steps], _LEFT, _WIDTH - _RIGHT, zero=True)
    parts = [
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y_at(y):.1f}" y2="{y_at(y):.1f}" stroke="var(--fg)"/>'
        f'<text x="{_LEFT - 6}" y="{y_at(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        for y in y_ticks
    ]
    parts += [f'<text x="{x_at(x):.1f}" y="{_HEIGHT - 24}" text-anchor="middle">{x:g}</text>' for x in x_ticks]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">training step · {escape(metric)}</text>')
    for number, (arm, rows) in enumerate(by_arm.items()):
        color = f"var(--f{number % len(_LIGHT)})"
        up = [f"{x_at(step):.1f},{y_at(high):.1f}" for step, _, _, high in rows]
        down = [f"{x_at(step):.1f},{y_at(low):.1f}" for step, _, low, _ in reversed(rows)]
        line = " ".join(f"{x_at(step):.1f},{y_at(mean):.1f}" for step, mean, _, _ in rows)
        parts.append(
            f'<g><title>{escape(arm)}</title><polygon points="{" ".join([*up, *down])}" fill="{color}" opacity=".16"/>'
            f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/></g>'
        )
    return _svg(_WIDTH, _HEIGHT, f"{metric} during training", [*parts, *_legend(list(by_arm))])


def bars(rows: Sequence[Mapping[str, Any]], name: str, arms: Sequence[str]) -> str:
    """Bars of a column with intervals, by group of tasks, one for each arm. ``rows``: those of ``results.json``."""
    found = [row for row in rows if row[name] is not None]
    intervals = [interval_of(row[name]) for row in found]
    groups = list(dict.fromkeys(row["group"] for row in found))
    at, ticks = axis(intervals, _NAMES, _WIDTH - _RIGHT, zero=True)
    height = _HEAD + sum(_ROW * sum(row["group"] == group for row in found) + 12 for group in groups) + 24
    parts = [
        f'<line x1="{at(x):.1f}" x2="{at(x):.1f}" y1="{_HEAD}" y2="{height - 24}" stroke="var(--fg)"/>'
        f'<text x="{at(x):.1f}" y="{height - 8}" text-anchor="middle">{x:g}</text>'
        for x in ticks
    ]
    y = float(_HEAD)
    for group in groups:
        own = [(row, one) for row, one in zip(found, intervals, strict=True) if row["group"] == group]
        title = f"{group.replace('_', ' ')} ({own[0][0]['tasks']})"
        parts.append(f'<text x="0" y="{y + _ROW * len(own) / 2 + 4:.1f}">{escape(title)}</text>')
        for row, one in own:
            color = f"var(--f{list(arms).index(row['arm']) % len(_LIGHT)})"
            low, high = (end if abs(end) < float("inf") else one.value for end in (one.low, one.high))
            text = f"{row['arm']}, {group}: {shown(one)}"
            width = max(at(one.value) - at(0), 0)
            parts.append(
                f'<g><title>{escape(text)}</title><rect x="{at(0):.1f}" y="{y + 4:.1f}"'
                f' width="{width:.1f}" height="{_ROW - 8}" rx="2" fill="{color}" opacity=".75"/>'
                f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{y + _ROW / 2:.1f}" y2="{y + _ROW / 2:.1f}"'
                ' stroke="var(--fs)" stroke-width="1.5"/></g>'
            )
            y += _ROW
        y += 12
    return _svg(_WIDTH, round(height), f"{name} by group of tasks", [*parts, *_legend(arms)])


def interval_of(cell: Mapping[str, float | None]) -> Interval:
    """An interval of ``results.json``, whose infinite ends are null."""
    low, high = cell["low"], cell["high"]
    value = cell["value"]
    assert value is not None
    return Interval(value, -float("inf") if low is None else low, float("inf") if high is None else high)
