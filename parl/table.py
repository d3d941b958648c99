"""The result of a run as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_GROUPS = ("wide", "wide_12", "chain", "single_fact", "picture", "all")  # those that there are
_COLUMNS = ("item_f1", "success", "critical_steps", "total_steps", "subagents", "spawn_rate", "n_tasks")


def print_table(policies: dict[str, dict[str, dict[str, Any]]], console: Console | None = None) -> None:
    """``policies`` maps a label to its evaluation table (``rewards.aggregate.evaluation_table``)."""
    table = Table(title="held-out tasks", title_style="bold")
    for name in ("tasks", "policy", *_COLUMNS):
        table.add_column(name.replace("_", " "), justify="left" if name in ("tasks", "policy") else "right")
    for group in (group for group in _GROUPS if any(group in rows for rows in policies.values())):
        for label, rows in policies.items():
            row = rows[group]
            cells = ["-" if row[name] is None else _number(row[name]) for name in _COLUMNS]
            table.add_row(group, label, *cells)
        table.add_section()
    (console or Console(width=120)).print(table)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"
