"""``parl top RUN``: a running or finished run in the terminal, from its files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parl.config.runs import run_config, run_folder
from parl.shown import terminal
from parl.shown.terminal import cell, line
from parl.track.alarms import alarms
from parl.track.progress import clock, sparkline
from parl.track.tracker import train_rows
from rollouts.store.lookup import read_columns, shards
from rollouts.store.store import StoreError

_PAGE = 110  # columns of a frame without a terminal
_WIDTH = 36  # characters of a curve
_LAST = 8  # episodes shown
_STALE = 3.0  # times a step's usual length without news, after which the run counts as silent
_CURVES = (
    ("reward", "reward/total", ".3f", "green"),
    ("outcome", "reward/perf", ".3f", "green"),
    ("critical steps", "steps/critical", ".1f", "yellow"),
    ("p95 of them", "steps/critical_p95", ".1f", "yellow"),
    ("sub-agents", "swarm/subagents", ".2f", "cyan"),
    ("spawn rate", "swarm/spawn_rate", ".2f", "cyan"),
    ("useless spawns", "swarm/useless_spawn_rate", ".2f", "red"),
    ("finish rate", "swarm/finish_rate", ".2f", "cyan"),
    ("unread turns", "turns/unread", ".1%", "red"),
    ("cut turns", "turns/cut", ".1%", "red"),
    ("calls an episode", "turns/calls", ".2f", "cyan"),
    ("entropy", "policy/entropy", ".3f", "magenta"),
    ("engine gap", "policy/engine_gap", ".1e", "magenta"),
    ("tokens/s", "speed/tokens_per_s", ",.0f", "blue"),
)


def show(given: Path, *, once: bool = False, every_s: float = 2.0, console: Console | None = None) -> None:
    """Print one frame, or refresh the view until the run ends or Ctrl-C. UserError if there is no run."""
    folder = run_folder(given)
    console = console or terminal.console()
    if not console.is_terminal:
        console.width = min(console.width, _PAGE)
    if once or not console.is_terminal or console.is_dumb_terminal:
        console.print(frame(folder))
        return
    with Live(frame(folder), console=console, screen=True, auto_refresh=False) as live:
        while not _finished(folder):
            time.sleep(every_s)
            live.update(frame(folder), refresh=True)
    console.print(frame(folder))


def frame(folder: Path, now: float | None = None) -> RenderableType:
    """The current state of the run; ``now`` in seconds since the epoch."""
    config = run_config(folder)
    rows = train_rows(folder / "metrics.jsonl")
    single = train_rows(folder / "single_agent" / "metrics.jsonl")
    now = time.time() if now is None else now
    parts: list[RenderableType] = [_head(folder, rows, config.trainer.steps, now)]
    if single:
        parts.append(_head(folder / "single_agent", single, config.trainer.steps, now))
    if rows:
        parts += [Text(), _curves(rows), Text(), _families(rows[-1]), Text(), _shares(rows)]
    parts += [Text(), _episodes(folder)]
    if rows and (found := alarms(rows[-1], rows[-1]["step"], config.model.shape.weights_dtype)):
        parts += [Text(), *(cell(f"! {text}", "bold red") for text in found)]
    return Panel(Group(*parts), title=cell(line(folder.name)), title_align="left", border_style="blue")


def _finished(folder: Path) -> bool:
    return (folder / "summary.json").exists()


def _head(folder: Path, rows: Sequence[dict[str, Any]], steps: int, now: float) -> Table:
    head = Table.grid(expand=True, padding=(0, 1))
    head.add_column(no_wrap=True)
    head.add_column(ratio=1)
    head.add_column(justify="right", no_wrap=True)
    step = rows[-1]["step"] if rows else 0
    lengths = [row["time/step_s"] for row in rows[-10:] if isinstance(row.get("time/step_s"), int | float)]
    usual = sum(lengths) / len(lengths) if lengths else None
    file = folder / "metrics.jsonl"
    age = now - file.stat().st_mtime if file.exists() else None
    if _finished(folder) or (folder / "policy" / "model.safetensors").exists():
        state = "finished"
    elif age is None:
        state = "no step yet: the cold start, or the engines are starting"
    elif usual and age > _STALE * usual + 30:
        state = f"silent for {clock(age)}: is it still running?"
    else:
        state = f"last step {clock(age)} ago" + (f" · about {clock(usual * (steps - step))} left" if usual else "")
    name = "single agent" if folder.name == "single_agent" else f"step {step}/{steps}"
    head.add_row(Text(name, style="bold"), ProgressBar(total=max(steps, 1), completed=step), state)
    return head


def _curves(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    for label, name, form, color in _CURVES:
        values = [float(row[name]) for row in rows if isinstance(row.get(name), int | float)]
        if values:
            span = f"{min(values):{form}} to {max(values):{form}}"
            table.add_row(label, f"{values[-1]:{form}}", Text(sparkline(values, _WIDTH), color), span)
    return table


def _families(row: dict[str, Any]) -> Table:
    prefix = "steps/critical/"
    names = sorted(name[len(prefix) :] for name in row if name.startswith(prefix))
    table = Table(box=None, padding=(0, 2), header_style="dim")
    table.add_column("tasks of the last step", no_wrap=True)
    for column in ("critical steps", "item-F1", "spawn rate"):
        table.add_column(column, justify="right")
    for name in names:
        cells = [f"{row[prefix + name]:.1f}"]
        for other, form in (("perf/item_f1", ".3f"), ("swarm/spawn_rate", ".2f")):
            found = row.get(f"{other}/{name}")
            cells.append("-" if found is None else f"{found:{form}}")
        table.add_row(cell(line(name.replace("_", " "))), *cells)
    return table


def _shares(rows: Sequence[dict[str, Any]]) -> Text:
    """Shares of time of the last ten steps."""
    sums = {name: sum(row.get(f"time/{name}_s") or 0.0 for row in rows[-10:]) for name in ("collect", "learn", "sync")}
    whole = sum(row.get("time/step_s") or 0.0 for row in rows[-10:]) or 1.0
    parts = " · ".join(f"{name} {value / whole:.0%}" for name, value in sums.items())
    return Text(f"time: {parts} · {whole / min(len(rows), 10):.1f} s a step", style="dim")


def _episodes(folder: Path) -> RenderableType:
    """The last episodes of the newest shard, the slowest first."""
    found = shards(folder / "episodes") if (folder / "episodes").is_dir() else []
    if not found:
        return Text("no episodes stored yet", style="dim")
    kind, step, path = max(found, key=lambda shard: shard[1])
    try:
        columns = ("task_key", "family", "index", "status", "wall_s", "metrics", "rewards")
        rows = list(read_columns(path, columns))
    except (StoreError, OSError) as error:
        return cell(f"the newest shard cannot be read: {error}", "red")
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in (f"slowest of step {step}", "tasks", "end", "reward", "critical steps", "sub-agents", "seconds"):
        table.add_column(column, justify="left" if column in (f"slowest of step {step}", "tasks", "end") else "right")
    order = sorted(range(len(rows)), key=lambda number: -rows[number]["wall_s"])
    for number in order[:_LAST]:
        row = rows[number]
        metrics, rewards = row["metrics"], row["rewards"]
        table.add_row(
            f"{kind}-{step:06d}:{number}",
            cell(line(row["family"])),
            cell(line(row["status"])),
            f"{rewards.get('total', 0.0):.3f}",
            f"{metrics.get('critical_steps', 0):.0f}",
            f"{metrics.get('subagents', 0):.0f}",
            f"{row['wall_s']:.1f}",
        )
    return table
