"""The result of a run as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from parl.shown import terminal
from parl.shown.terminal import cell

_COLUMNS = (
    *("item_f1", "success", "critical_steps", "path_tokens", "makespan_s", "total_tokens"),
    *("subagents", "spawn_rate", "direct_parallel_rate", "n_tasks"),
)


def print_table(policies: dict[str, dict[str, dict[str, Any]]], console: Console | None = None) -> None:
    """``policies`` maps a label to its evaluation table (``rewards.aggregate.evaluation_table``)."""
    table = Table(title="held-out tasks", title_style="bold")
    for name in ("tasks", "policy", *_COLUMNS):
        table.add_column(name.replace("_", " "), justify="left" if name in ("tasks", "policy") else "right")
    for group in dict.fromkeys(group for rows in policies.values() for group in rows):
        for label, rows in policies.items():
            row = rows.get(group)
            if not row or not row["n_tasks"]:  # no such task was asked
                continue
            values = [row.get(name) for name in _COLUMNS]  # a summary of an older version has no costs
            cells = ["-" if value is None else _number(value) for value in values]
            table.add_row(cell(group), cell(label), *cells)
        table.add_section()
    (console or terminal.console()).print(table)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def print_evaluation(result: dict[str, Any], console: Console | None = None) -> None:
    """Print the result of ``parl eval`` (``run_eval``): estimates by group and policy, then costs."""
    n, policies = result["n"], result["policies"]
    title = f"{result['tasks']} held-out tasks, {n} attempts each; 95 % intervals over tasks"
    table = Table(title=title, title_style="bold")
    for name in ("tasks", "", "policy"):
        table.add_column(name, justify="right" if not name else "left")
    columns = [f"avg@{n}", *((f"max@{n}", f"pass@{n}") if n > 1 else ("success",)), "critical_steps"]
    costs = ("path_tokens", "makespan_s", "subagents", "sampled_tokens", "prompt_tokens")
    for name in (*columns, *costs):
        table.add_column(name.replace("_", " "), justify="right", no_wrap=name in columns)
    for group in next(iter(policies.values()))["estimates"]:
        for number, (label, policy) in enumerate(policies.items()):
            row = policy["estimates"][group]
            head = ("", "") if number else (cell(group.replace("_", " ")), str(row["tasks"]))
            digits = [1 if name == "critical_steps" else 3 for name in columns]
            cells = [_interval(row.get(name), d) for name, d in zip(columns, digits, strict=True)]
            table.add_row(*head, cell(label), *cells, *(f"{row[name]['value']:,.1f}" for name in costs))
        table.add_section()
    console = console or terminal.console()
    console.print(table)
    for label, policy in policies.items():
        console.print(cell(f"{label}: {_account(policy)}"), soft_wrap=True)


def _account(policy: dict[str, Any]) -> str:
    sums = policy["account"]
    each = sums["sampled_tokens_per_solved"]
    parts = [
        f"{sums['sampled_tokens']:,} tokens sampled" + (f" ({each:,.0f} for a solved task)" if each else ""),
        f"{sums['prompt_tokens']:,} prompt tokens, {sums['new_prompt_tokens']:,} of them new",
        *_billed(sums),
        *([f"{policy['failed']} episodes failed: the same command tries them again"] if policy["failed"] else []),
        policy["store"],
    ]
    return " · ".join(parts)


def _billed(sums: dict[str, Any]) -> list[str]:
    """The server's token counts, and their cost, if known."""
    parts = []
    if usage := sums.get("usage"):
        counted = f"server: {usage['prompt_tokens']:,} tokens in, {usage['completion_tokens']:,} out"
        missing = f" ({usage['unreported']:,} without a count)" if usage["unreported"] else ""
        parts.append(f"{counted} in {usage['requests']:,} requests{missing}")
    if cost := sums.get("cost"):
        each = cost["per_solved"]
        parts.append(f"cost {cost['total']:,.4f}" + (f" ({each:,.4f} for a solved task)" if each is not None else ""))
    return parts


def _interval(cell: dict[str, Any] | None, digits: int) -> str:
    if cell is None:  # nothing scores these tasks
        return "-"
    low, high = ("-" if cell[end] is None else f"{cell[end]:.{digits}f}" for end in ("low", "high"))
    return f"{cell['value']:.{digits}f} [{low}, {high}]"
