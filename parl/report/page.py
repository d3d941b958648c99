"""Assembles the page. Everything is inline, a policy forbids the network, and all text of a run is escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from envs.base import TaskGroup
from model.files import write_text
from parl.report.data import RunData, load_run

_POLICIES = {"cold_start": "cold start", "trained": "trained swarm", "single_agent": "single agent"}
_REFERENCES = {"item_f1": "single_agent", "spawn_rate": "cold_start"}  # the policy that a highlight is compared with
_COLUMNS = {
    "item_f1": ("item-F1", "{:.3f}"),
    "success": ("success", "{:.0%}"),
    "critical_steps": ("critical steps", "{:.1f}"),
    "total_steps": ("total steps", "{:.1f}"),
    "path_tokens": ("path tokens", "{:,.0f}"),
    "makespan_s": ("makespan, s", "{:,.1f}"),
    "total_tokens": ("tokens", "{:,.0f}"),
    "subagents": ("sub-agents", "{:.2f}"),
    "spawn_rate": ("spawn rate", "{:.0%}"),
    "direct_parallel_rate": ("calls in parallel", "{:.0%}"),
    "finish_rate": ("finish rate", "{:.0%}"),
    "n_tasks": ("tasks", "{:.0f}"),
}


_SCRIPTS = ("base.js", "charts.js", "unpack.js", "scene.js", "panel.js", "viewer.js")


def write_report(source: Path, out: Path, episodes: Sequence[str] = ()) -> Path:
    """Write the page about a run's folder, a store's folder or a shard to ``out`` and return ``out``.

    ``episodes`` come first: an episode's name (``trained-000000:5``), ``TASK`` or ``TASK#INDEX``.
    """
    out = Path(out)
    html = render(load_run(Path(source), episodes))
    return write_text(out, html)


def render(run: RunData) -> str:
    """The page as a string."""
    assets = files("parl.report") / "assets"
    text = {name: (assets / name).read_text(encoding="utf-8") for name in ("report.css", "viewer.css", *_SCRIPTS)}
    sections = [
        _hero(run.summary, run.groups),
        _verdict(run.summary, run.groups),
        '<section id="curves"><h2>Training</h2><div class="grid"></div></section>' if run.charts else "",
        '<section id="spread"><h2>Held-out episodes</h2><div class="grid"></div></section>' if run.spread else "",
        '<section id="swarm"><h2>Swarm viewer</h2></section>' if run.episodes else "",
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    headings = [{name: value for name, value in e.items() if name != "packed"} for e in run.episodes]
    data = {"charts": run.charts, "spread": run.spread, "episodes": headings}
    packed = "".join(
        f'<script type="text/plain" id="episode-{i}">{episode["packed"]}</script>\n'
        for i, episode in enumerate(run.episodes)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{escape(run.name)} · parl</title>
<style>{text["report.css"]}{text["viewer.css"]}</style>
</head>
<body>
<header><p class="brand">parl report</p><h1>{escape(run.name)}</h1>{_facts(run.summary)}</header>
<main>
{"".join(sections)}
{f'<ul class="notes">{notes}</ul>' if notes else ""}
</main>
<div id="tip" role="status" hidden></div>
<script type="application/json" id="data">{_json(data)}</script>
{packed}{"".join(f"<script>{text[name]}</script>" for name in _SCRIPTS)}
</body>
</html>
"""  # noqa: E501


def _json(data: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _facts(summary: dict[str, Any]) -> str:
    parts = []
    if isinstance(summary.get("wall_s"), int | float):
        parts.append(f"{summary['wall_s'] / 60:.1f} min")
    if isinstance(summary.get("peak_rss_gib"), int | float):
        parts.append(f"peak memory {summary['peak_rss_gib']:.1f} GiB")
    parts += [f"{name} {summary[name]}" for name in ("seed", "version") if name in summary]
    return f'<p class="facts">{escape(" · ".join(parts))}</p>' if parts else ""


def _number(summary: dict[str, Any], policy: str, group: str, column: str) -> float | None:
    value: Any = summary
    for key in (policy, group, column):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int | float) else None


def _title(group: TaskGroup) -> str:
    return group.title or group.name.replace("_", " ")


def _hero(summary: dict[str, Any], groups: Sequence[TaskGroup]) -> str:
    """The headline of the first group that has one: whole answers beside the single agent's, or critical steps."""
    for group in groups:
        trained, single = (
            _number(summary, policy, group.name, group.highlight) for policy in ("trained", "single_agent")
        )
        where = escape(_title(group))
        if group.highlight == "success" and trained is not None and single is not None:
            said = f"{trained:.0%}", f"of {where} are right in every cell; the single agent's: <b>{single:.0%}</b>"
        elif group.highlight == "critical_steps" and trained and single:
            said = (
                f"{single / trained:.1f}×",
                f"fewer critical steps than the single agent on {where}:\n<b>{single:.1f}</b> → <b>{trained:.1f}</b>",
            )
        else:
            continue
        return f"""<section class="hero">
<div class="big"><strong>{said[0]}</strong>
<p>{said[1]}</p></div>
<div class="tiles">{"".join(_tiles(summary, groups))}</div></section>"""
    return ""


def _tiles(summary: dict[str, Any], groups: Sequence[TaskGroup]) -> list[str]:
    """Figures beside the headline: correctness, and spawning where it does not pay."""
    tiles = []
    for group in (group for group in groups if group.highlight in _REFERENCES):
        column, other = group.highlight, _REFERENCES[group.highlight]
        label, form = _COLUMNS[column]
        value, reference = _number(summary, "trained", group.name, column), _number(summary, other, group.name, column)
        if value is None:
            continue
        beside = f"<small>{_POLICIES[other]} {form.format(reference)}</small>" if reference is not None else ""
        name = f"{label}, {escape(_title(group))}"
        tiles.append(f'<div class="tile"><span>{name}</span><b>{form.format(value)}</b>{beside}</div>')
    return tiles


def _verdict(summary: dict[str, Any], groups: Sequence[TaskGroup]) -> str:
    titles = {group.name: _title(group) for group in groups}
    tables = [table for policy in _POLICIES if isinstance(table := summary.get(policy), dict)]
    titles |= {name: name.replace("_", " ") for table in tables for name in table if name not in titles}
    titles.pop("all", None)
    body = ""
    for group, title in (titles | {"all": "all tasks"}).items():
        rows = [policy for policy in _POLICIES if isinstance((summary.get(policy) or {}).get(group), dict)]
        rows = [policy for policy in rows if _number(summary, policy, group, "n_tasks") != 0]  # without this number
        if not rows:
            continue
        body += f'<tbody><tr class="group"><th colspan="{len(_COLUMNS) + 1}" scope="rowgroup">{escape(title)}</th></tr>'
        for policy in rows:
            cells = "".join(
                f'<td data-label="{label}">{"–" if value is None else form.format(value)}</td>'
                for column, (label, form) in _COLUMNS.items()
                for value in [_number(summary, policy, group, column)]
            )
            body += f'<tr class="{policy}"><th scope="row"><i></i>{_POLICIES[policy]}</th>{cells}</tr>'
        body += "</tbody>"
    if not body:
        return ""
    head = "".join(f"<th scope='col'>{label}</th>" for label, _ in _COLUMNS.values())
    return f"""<section><h2>Verdict on held-out tasks</h2><div class="scroll"><table class="verdict">
<thead><tr><th scope="col">policy</th>{head}</tr></thead>{body}</table></div>
<p class="legend-note">Critical steps: each orchestrator step plus the longest sub-agent that it started, summed;
path tokens are the same sum over sampled tokens, makespan the same path in seconds under <code>rewards.latency</code>.
Means over the group's tasks; rates are shares of episodes;
finish rate is the share of sub-agents that returned.</p></section>"""
