"""Output of ``parl compare``: differences by group, trade-offs, and the tasks that changed most."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from parl.evaluate.measures import shown
from parl.evaluate.statistics import Interval
from parl.shown import terminal
from parl.shown.terminal import cell

METRICS = {  # name -> digits
    "score": 3,
    "success": 3,
    "critical_steps": 1,
    "path_tokens": 0,
    "makespan_s": 1,
    "sampled_tokens": 0,
    "prompt_tokens": 0,
}
LISTED = 8


def print_comparison(result: dict[str, Any], console: Console | None = None, *, listed: int = LISTED) -> None:
    """The tables of ``parl.evaluate.compare.compare``'s result; ``listed`` tasks of each kind."""
    console = console or terminal.console()
    for pair in result["pairs"]:
        console.print(_differences(pair))
        for kind in ("regressions", "improvements"):
            if pair[kind]:
                console.print(_tasks(pair, kind, listed))
        same = pair["tasks"] - len(pair["regressions"]) - len(pair["improvements"])
        counts = f"{len(pair['improvements'])} better, {len(pair['regressions'])} worse, {same} the same"
        console.print(cell(f"{pair['b']} against {pair['a']}: {counts} of {pair['tasks']} tasks\n"))
    console.print(_trade_offs(result["pareto"]))


def verdict(difference: Interval, *, better: int) -> str:
    """``better``, ``worse`` or ``-`` if the interval of a difference contains 0; ``better``: the good sign."""
    if difference.low <= 0 <= difference.high:
        return "-"
    return "better" if (difference.value > 0) == (better > 0) else "worse"


def _differences(pair: dict[str, Any]) -> Table:
    title = cell(f"{pair['b']} against {pair['a']}: {pair['tasks']} tasks, paired, 95 % intervals")
    table = Table(title=title, title_style="bold")
    for name in ("tasks", "", "", pair["a"], pair["b"], "difference", "a / b", ""):
        table.add_column(cell(name), justify="left" if name == "tasks" else "right")
    for group, row in pair["groups"].items():
        head = (cell(group.replace("_", " ")), str(row["tasks"]))
        for name, digits in METRICS.items():
            if (found := row.get(name)) is None:
                continue
            ratio = found.get("ratio")
            table.add_row(
                *head,
                name.replace("_", " "),
                f"{found['a'].value:,.{digits}f}",
                f"{found['b'].value:,.{digits}f}",
                shown(found["difference"], digits),
                shown(ratio, 2) if ratio else "",
                verdict(found["difference"], better=1 if name in ("score", "success") else -1),
            )
            head = ("", "")
        table.add_section()
    return table


def _tasks(pair: dict[str, Any], kind: str, listed: int) -> Table:
    rows = pair[kind]
    rest = f", the largest {listed}" if len(rows) > listed else ""
    table = Table(title=f"{len(rows)} {kind}{rest}", title_style="bold")
    for name in (
        "task",
        "family",
        "width",
        "score",
        "critical steps",
        f"{pair['a']} episodes",
        f"{pair['b']} episodes",
    ):
        table.add_column(cell(name), justify="right" if name in ("width", "score", "critical steps") else "left")
    for row in rows[:listed]:
        a, b = (sum(scores) / len(scores) for scores in row["scores"])
        steps = " → ".join(f"{steps:.1f}" for steps in row["critical_steps"])
        refs = (", ".join(refs[:2]) + (" …" if len(refs) > 2 else "") for refs in row["episodes"])
        about = (cell(row["task"]), cell(row["family"]), str(row["width"]))
        table.add_row(*about, f"{a:.2f} → {b:.2f}", steps, *map(cell, refs))
    return table


def _trade_offs(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="trade-offs, on the tasks that all have", title_style="bold")
    for name in ("policy", "score", "critical steps", "sampled tokens", "on the Pareto front"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in sorted(rows, key=lambda row: -row["score"].value):
        cells = (shown(row["score"]), shown(row["critical_steps"], 1), shown(row["sampled_tokens"], 0))
        table.add_row(cell(row["policy"]), *cells, "yes" if row["front"] else "no")
    return table
