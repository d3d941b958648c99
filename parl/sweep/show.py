"""What a sweep shows while it runs: a live table in a terminal, lines elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parl.shown import terminal
from parl.shown.terminal import cell as cell_of
from parl.shown.terminal import line, plain
from parl.sweep.estimate import Clock, share_done
from parl.sweep.state import Order
from parl.track.progress import clock

if TYPE_CHECKING:
    from parl.sweep.processes import Running

_EVERY_S = 60.0  # between lines about running cells, without a terminal
_TAIL = 4000  # bytes of a log whose last line is shown
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Show:
    """A context manager. ``total``: cells of this invocation; ``skipped``: those that were done before."""

    def __init__(self, title: str, total: int, jobs: int, times: Clock, *, console: Console | None = None) -> None:
        self._title, self._total, self._jobs, self._times = title, total, jobs, times
        self._console = console or terminal.console(stderr=True)
        self._live: Live | None = None
        self._began = self._told = time.monotonic()
        self._finished = self._failures = 0
        self._running: Sequence[Running] = ()
        self._waiting: Sequence[Order] = ()
        self._later: list[Order] = []  # of stages to come

    def __enter__(self) -> Show:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def stages(self, later: Sequence[Order]) -> None:
        """``later`` come after the cells that run now."""
        self._later = list(later)

    def begins(self, one: Running) -> None:
        """A cell was started."""
        number = self._finished + self._failures + len(self._running) + 1
        self._running = [*self._running, one]
        self._line(f"[{number}/{self._total}] {one.order.id} begins; its output: {one.log}")

    def done(self, one: Running, seconds: float) -> None:
        """A cell is done."""
        self._finished += 1
        self._running = [other for other in self._running if other is not one]
        self._line(f"{one.order.id} done in {clock(seconds)}; {self._counts()}")

    def failed(self, one: Running, word: str, what: str) -> None:
        """A cell failed; ``what``: its first traceback."""
        self._failures += 1
        self._running = [other for other in self._running if other is not one]
        self._line(f"{one.order.id} FAILED ({word}); all of its output: {one.log}\n{what}")

    def tell(self, text: str) -> None:
        """Show a line."""
        self._line(text)

    def going(self, running: Sequence[Running], waiting: Sequence[Order]) -> None:
        """Called while cells run."""
        self._running, self._waiting = list(running), list(waiting)
        if not self._live and running and time.monotonic() - self._told > _EVERY_S:
            self._told = time.monotonic()
            for one in running:
                self._line(f"  {one.order.id}: {clock(time.monotonic() - one.began)} · {last_line(one)}")
            self._line(f"  {self._counts()}")

    def _counts(self) -> str:
        left = self._left()
        failed = f", {self._failures} failed" if self._failures else ""
        time_left = f"about {clock(left)} left" if left is not None else "time left unknown yet"
        return f"{self._finished} of {self._total} done{failed} · {clock(time.monotonic() - self._began)} · {time_left}"

    def _left(self) -> float | None:
        now = time.monotonic()
        running = [(one.order, now - one.began, share_done(one.order)) for one in self._running]
        return self._times.left(running, [*self._waiting, *self._later], self._jobs)

    def _line(self, text: str) -> None:
        self._console.print(plain(text), soft_wrap=True, highlight=False, markup=False)

    def _render(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for one in self._running:
            share = share_done(one.order)
            bar = ProgressBar(total=1.0, completed=share or 0.0, width=16)
            spent = clock(time.monotonic() - one.began)
            table.add_row(cell_of(line(one.order.id)), bar, spent, cell_of(line(last_line(one))[:80], "dim"))
        waiting = len(self._waiting) + len(self._later)
        foot = Text(f"{self._counts()} · {waiting} waiting", style="bold")
        return Panel(Group(table, foot), title=cell_of(line(self._title)), title_align="left", border_style="blue")


def last_line(one: Running) -> str:
    """The last line of a cell's log that says something."""
    try:
        with one.log.open("rb") as file:
            file.seek(max(0, one.log.stat().st_size - _TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [_ESCAPES.sub("", part).strip() for part in re.split(r"[\n\r]", text)]
    return next((part for part in reversed(lines) if part and not part.startswith("---")), "")
