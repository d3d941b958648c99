"""Terminal output of ``parl episodes``: a table of episodes, one episode as a tree, matches in their lines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from parl.episodes.listing import Hit, call_text, listing_row
from parl.episodes.stores import Store
from parl.shown import terminal
from parl.shown.terminal import cell, line, styled
from rollouts.critical_path import longest_subagent
from rollouts.episode import Episode, Trace, Turn
from rollouts.store.outline import Outline

_COLUMNS = {
    **{"episode": "left", "task": "left", "family": "left", "width": "right", "status": "left", "reward": "right"},
    **{"perf": "right", "critical_steps": "right", "total_steps": "right", "subagents": "right", "tokens": "right"},
}
_CUT = 400  # characters of a text, unless everything is asked for


def print_listing(rows: Iterable[dict[str, Any]], console: Console | None = None) -> int:
    """Print a table per store; returns the number of episodes."""
    console = console or terminal.console()
    stores: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        stores.setdefault(row["store"], []).append(row)
    for store, members in stores.items():
        table = Table(title=cell(line(store)), title_style="bold", title_justify="left")
        for name, justify in _COLUMNS.items():
            table.add_column(name.replace("_", " "), justify=justify, no_wrap=name == "episode")  # type: ignore[arg-type]
        for row in members:
            named = row | {"task": f"{row['task']}#{row['attempt']}"}
            if row["limit"]:
                named["status"] = f"{row['status']}: {row['limit']}"
            table.add_row(*(_cell(named[name]) for name in _COLUMNS))
        console.print(table)
    return sum(map(len, stores.values()))


def print_episode(store: Store, outline: Outline, console: Console | None = None, *, full: bool = False) -> None:
    """Print the episode's numbers and its agents as a tree; ``>`` marks the critical path."""
    console, episode = console or terminal.console(), outline.episode
    row = listing_row(store, outline)
    head = styled("[bold]{}[/] in {} · {}#{}", *(line(row[name]) for name in ("episode", "store", "task", "attempt")))
    console.print(head + cell(line(f" · {row['family']} of width {row['width']}")))
    end = f"{row['status']}{': ' + row['limit'] if row['limit'] else ''}"
    steps = f"{row['critical_steps']} critical steps, {row['total_steps']} in all"
    sizes = f"{row['subagents']} sub-agents · {row['tokens']:,} tokens · {episode.wall_s:.1f} s"
    console.print(cell(line(f"{end} · {steps} · {sizes}")))
    if episode.rewards:
        console.print(cell(line(" · ".join(f"{name} {value:.3f}" for name, value in episode.rewards.items()))))
    if episode.error:
        console.print(cell(episode.error, "red"))
    console.print(episode_tree(episode, None if full else _CUT))


def print_hits(hits: Iterable[Hit], console: Console | None = None) -> int:
    """Print one line per match; returns their number."""
    console, count = console or terminal.console(), 0
    for hit in hits:
        count += 1
        before, match, after = hit.around()
        place = f"{hit.ref} {hit.agent}" + ("" if hit.turn is None else f" turn {hit.turn}")
        parts = map(line, (hit.store, place, hit.where, before, match, after))
        console.print(styled("[dim]{}[/] [cyan]{}[/] {}: {}[bold red]{}[/]{}", *parts), soft_wrap=True)
    return count


def episode_tree(episode: Episode, cut: int | None = _CUT) -> Tree:
    """The agents with their turns; texts truncated to ``cut`` characters, None: whole."""
    by_id = {trace.agent_id: trace for trace in episode.traces}
    tree = Tree(styled("[bold]orchestrator[/] {}", _text(episode.task.prompt, cut)), guide_style="dim")
    _grow(tree, episode.orchestrator, by_id, True, cut)
    return tree


def _grow(tree: Tree, trace: Trace, by_id: dict[str, Trace], critical: bool, cut: int | None) -> None:
    for number, turn in enumerate(trace.turns):
        node = tree.add(_turn(number, turn, critical, cut))
        children = [by_id[agent_id] for agent_id in turn.spawned if agent_id in by_id]
        longest = longest_subagent(children)
        calls = [call for call in turn.calls if call.name != "assign_task" or not turn.spawned]
        for call in calls:
            node.add(cell(call_text(call.name, call.arguments), "green"))
        for child in children:
            mark = "> " if critical and child is longest else ""
            about = (mark, line(child.agent_id), line(child.name), child.status, child.steps, _text(child.prompt, cut))
            label = styled("{}[bold]{} {}[/] {}, {} steps: {}", *about)
            _grow(node.add(label), child, by_id, bool(mark), cut)
        for result in turn.results:
            node.add(cell(f"= {_text(result.readable, cut)}", "red" if result.error else "dim"))


def _turn(number: int, turn: Turn, critical: bool, cut: int | None) -> Text:
    mark = "> " if critical else ""
    times = f"{turn.t_end - turn.t_start:.2f} s, {turn.end - turn.start} tokens"
    bad = f" malformed: {line(turn.malformed)}" if turn.malformed else ""
    about = (mark, number, times, bad, _text(turn.content, cut))
    shown = styled("{}[cyan]turn {}[/] [dim]{}[/][red]{}[/] {}", *about)
    shown.rstrip()
    return shown


def _text(text: str, cut: int | None) -> str:
    return text if cut is None or len(text) <= cut else text[:cut] + " …"


def _cell(value: Any) -> str | Text:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else cell(line(value))
