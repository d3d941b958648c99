"""Progress of a run: a live view in a terminal, one plain line per step elsewhere."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

import rich.progress
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from parl.shown import terminal
from parl.shown.terminal import cell, line, plain
from parl.track.alarms import alarms

_RECENT = 11  # steps for the estimate of the time left, and one before
_ENOUGH = 3  # ends of steps needed for an estimate
_BLOCKS = "▁▂▃▄▅▆▇█"
_WEIGHT = "lambda/"  # of a part of the reward
_SPAWN, _F1 = "swarm/spawn_rate/", "perf/item_f1/"


def sparkline(values: list[float], width: int = 40) -> str:
    """The values as one line of block characters, lowest to highest; averaged down to ``width``."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if not finite:
        return ""
    if len(finite) > width:
        cuts = [round(i * len(finite) / width) for i in range(width + 1)]
        finite = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(finite), max(finite)
    span = (high - low) or 1.0
    return "".join(_BLOCKS[min(len(_BLOCKS) - 1, int((value - low) / span * len(_BLOCKS)))] for value in finite)


def clock(seconds: float) -> str:
    """``75`` as ``1:15``, from an hour on as ``1:02:03``."""
    minutes, secs = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Progress:
    """A context manager; call :meth:`update` after every step, :meth:`phase` in between."""

    def __init__(
        self,
        total_steps: int,
        title: str,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        dtype: str = "float32",
    ) -> None:
        self._clock = clock
        self.total_steps, self.title = total_steps, title
        self._dtype = dtype  # of the policy, for what its warnings tolerate
        self._console = console or terminal.console()
        self._live: Live | None = None
        self._began = time.monotonic()
        self._ended: deque[float] = deque(maxlen=_RECENT)  # times of the last steps' ends
        self._step = 0
        self._metrics: dict[str, float] = {}
        self._history: dict[str, list[float]] = {"reward/total": [], "steps/critical": []}
        self._phase, self._done, self._total = "", None, None

    def __enter__(self) -> Progress:
        self._began = time.monotonic()
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
            self._live.start()
        else:
            self._line(self.title)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._phase = "stopped" if kind else ""
            self._live.stop()
            self._live = None

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the numbers of ``step`` (1 is the first)."""
        self._step = step
        self._ended.append(self._clock())
        self._metrics.update(metrics)
        for name, values in self._history.items():
            if name in metrics:
                values.append(float(metrics[name]))
        self._done = self._total = None
        self._phase = ""
        if not self._live:
            self._line(self.plain())
            for text in alarms(metrics, step, self._dtype):
                self._line(f"! {text}")

    def phase(self, text: str, done: int | None = None, total: int | None = None) -> None:
        """Show the current activity, e.g. ``phase("collecting", 40, 96)``."""
        new = text != self._phase
        self._phase, self._done, self._total = text, done, total
        if new and not self._live and self._step == 0:  # afterwards one line per step is enough
            self._line(f"{text} ...")

    @contextmanager
    def part(self, label: str, total: int) -> Iterator[_Part]:
        """A part of the work with its own count: ``evaluating LABEL 3/40``."""
        yield _Part(self, label, total)

    def plain(self) -> str:
        """The latest step as one line of text."""
        get = self._metrics.get
        parts = [f"step {self._step}/{self.total_steps}"]
        for label, value, form in (
            ("reward", get("reward/total"), ".3f"),
            (*self._outcome(), ".3f"),
            ("critical steps", get("steps/critical"), ".1f"),
            ("sub-agents", get("swarm/subagents"), ".2f"),
        ):
            if value is not None:
                parts.append(f"{label} {value:{form}}")
        if self._families(_SPAWN):
            parts.append("spawn " + " ".join(f"{name} {value:.2f}" for name, value in self._families(_SPAWN).items()))
        if self._lambdas():
            parts.append(" ".join(f"{name} {value:.2f}" for name, value in self._lambdas().items()))
        for label, name in (("unread turns", "turns/unread"), ("cut turns", "turns/cut")):
            if get(name):
                parts.append(f"{label} {get(name):.0%}")
        if get("speed/tokens_per_s") is not None:
            parts.append(f"{get('speed/tokens_per_s'):,.0f} tok/s")
        return " · ".join([*parts, f"ETA {self._eta()}"])

    def _lambdas(self) -> dict[str, float]:
        """The reward's annealed weights, as λ1 and λ2 or by their class's names."""
        weights = {
            name.removeprefix(_WEIGHT): value for name, value in self._metrics.items() if name.startswith(_WEIGHT)
        }
        names = {"parallel": "λ1", "finish": "λ2"}
        return {names.get(part, f"λ {part}"): value for part, value in weights.items() if part != "critical"}

    def _line(self, text: str) -> None:
        self._console.print(plain(text), soft_wrap=True, highlight=False, markup=False)

    def _families(self, prefix: str) -> dict[str, float]:
        return {key[len(prefix) :]: value for key, value in self._metrics.items() if key.startswith(prefix)}

    def _outcome(self) -> tuple[str, float | None]:
        """How good the answers are, and what measures it."""
        families = list(self._families(_F1).values())
        if families:
            return "item-F1", sum(families) / len(families)
        return "score", self._metrics.get("reward/perf")

    def _eta(self) -> str:
        """From the last steps, without the first, which includes start-up."""
        if len(self._ended) < _ENOUGH:
            return "?"
        each = (self._ended[-1] - self._ended[0]) / (len(self._ended) - 1)
        return clock(each * (self.total_steps - self._step) - (self._clock() - self._ended[-1]))

    def _render(self) -> RenderableType:
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(justify="right", no_wrap=True)
        elapsed = clock(self._clock() - self._began)
        head.add_row(
            Text(f"step {self._step}/{self.total_steps}", style="bold"),
            ProgressBar(total=max(1, self.total_steps), completed=self._step),
            f"{elapsed} elapsed · ETA {self._eta()}",
        )
        body = Table.grid(padding=(0, 2))
        body.add_column(style="dim", no_wrap=True)
        body.add_column(justify="right", no_wrap=True, style="bold")
        body.add_column(overflow="ellipsis", no_wrap=True)
        for row in self._rows():
            body.add_row(*row)
        foot = cell(line(self._phase_text()), "dim")
        wrong = [cell(f"! {text}", "bold red") for text in alarms(self._metrics, self._step, self._dtype)]
        shown = Group(head, Text(), body, *wrong, foot)
        return Panel(shown, title=cell(line(self.title)), title_align="left", border_style="blue")

    def _rows(self) -> list[tuple[str, str, Text | str]]:
        get = self._metrics.get
        reward, critical = self._history["reward/total"], self._history["steps/critical"]

        def number(value: float | None, form: str) -> str:
            return "-" if value is None else f"{value:{form}}"

        def moved(values: list[float], form: str) -> str:
            return f"  {values[0]:{form}} → {values[-1]:{form}}" if len(values) > 1 else ""

        families = self._families(_SPAWN).items()
        spawn = line("  ".join(f"{name} {value:.0%}" for name, value in families))
        lambdas = self._lambdas()
        outcome, value = self._outcome()
        return [
            ("reward", number(get("reward/total"), ".3f"), Text(sparkline(reward) + moved(reward, ".2f"), "green")),
            (outcome, number(value, ".3f"), ""),
            (
                "critical steps",
                number(get("steps/critical"), ".1f"),
                Text(sparkline(critical) + moved(critical, ".1f"), "yellow"),
            ),
            ("sub-agents per episode", number(get("swarm/subagents"), ".2f"), ""),
            ("spawn rate", number(get("swarm/spawn_rate"), ".0%"), Text(spawn)),
            (" · ".join(lambdas) or "λ", " · ".join(f"{value:.2f}" for value in lambdas.values()) or "-", ""),
            ("unread, cut turns", f"{number(get('turns/unread'), '.0%')}, {number(get('turns/cut'), '.0%')}", ""),
            ("tokens/s", number(get("speed/tokens_per_s"), ",.0f"), ""),
        ]

    def _phase_text(self) -> str:
        if self._total:
            return f"{self._phase} {self._done or 0}/{self._total}"
        return self._phase


class _Part:
    def __init__(self, progress: Progress, label: str, total: int) -> None:
        self._progress, self._label, self._total, self._done = progress, label, total, 0
        self.advance(0)

    def advance(self, count: int) -> None:
        self._done += count
        self._progress.phase(f"evaluating {self._label}", self._done, self._total)


class EpisodeBar:
    """A progress bar over episodes with the time left; outside a terminal a line every tenth."""

    def __init__(self, title: str, total: int, *, console: Console | None = None) -> None:
        self._title, self._total, self._done = line(title), total, 0
        self._console = console or terminal.console(stderr=True)
        self._began = time.monotonic()
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> EpisodeBar:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            columns = (
                rich.progress.TextColumn("{task.description}", markup=False),
                rich.progress.BarColumn(),
                rich.progress.MofNCompleteColumn(),
                rich.progress.TextColumn("episodes ·"),
                rich.progress.TimeElapsedColumn(),
                rich.progress.TextColumn("elapsed ·"),
                rich.progress.TimeRemainingColumn(elapsed_when_finished=False),
                rich.progress.TextColumn("left"),
            )
            self._bar = rich.progress.Progress(*columns, console=self._console)
            self._bar.add_task(self._title, total=self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, count: int) -> None:
        """Add ``count`` finished episodes."""
        before, self._done = self._done, self._done + count
        if self._bar:
            self._bar.advance(self._bar.task_ids[0], count)
        elif before * 10 // self._total != self._done * 10 // self._total:
            spent = time.monotonic() - self._began
            left = clock(spent / self._done * (self._total - self._done))
            text = f"{self._title}: {self._done}/{self._total} episodes · {clock(spent)} elapsed · about {left} left"
            self._console.print(plain(text), highlight=False, markup=False, soft_wrap=True)
