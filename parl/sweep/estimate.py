"""How long cells take: from cells that are done, running cells, and earlier runs of the same policy. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from parl.config.runs import CONFIG, run_config
from parl.errors import UserError
from parl.sweep.cells import Cell
from parl.sweep.state import Folder, Order
from parl.track.tracker import train_rows

_FEW = 3  # steps from which a running cell tells how long it takes
_RUNS = 8  # newest runs that are looked at


class Clock:
    """Mean seconds of each arm's cells, and an estimate of what is left."""

    def __init__(self, folder: Folder, known: Iterable[Cell]) -> None:
        self._took: dict[tuple[str, bool], list[float]] = {}  # arm, whether it trains -> seconds
        for cell in known:
            outcome = folder.any_outcome(cell.id)
            if outcome is not None:
                self._took.setdefault((cell.arm, cell.trains), []).append(outcome.wall_s)

    def took(self, order: Order, seconds: float) -> None:
        """A cell is done."""
        self._took.setdefault((order.arm, order.steps > 0), []).append(seconds)

    def expected(self, order: Order) -> float | None:
        """Seconds that a cell takes: the mean of its arm, else of all that train, or do not, as it does."""
        trains = order.steps > 0
        same = self._took.get((order.arm, trains))
        others = [one for (_, other), found in self._took.items() if other == trains for one in found]
        return fmean(same or others) if same or others else None

    def left(
        self, running: Sequence[tuple[Order, float, float | None]], waiting: Sequence[Order], jobs: int
    ) -> float | None:
        """Seconds until all are done, None where nothing tells.

        ``running``: with the seconds so far, and the share that is done if known.
        """
        whole = [spent / share for _, spent, share in running if share]
        parts: list[float | None] = []
        for order, spent, share in running:
            total = spent / share if share else self.expected(order)
            parts.append(None if total is None else max(total - spent, 0.0))
        for order in waiting:
            parts.append(self.expected(order) or (fmean(whole) if whole and order.steps else None))
        known = [part for part in parts if part is not None]
        return max(sum(known) / jobs, max(known, default=0.0)) if len(known) == len(parts) else None


def share_done(order: Order) -> float | None:
    """The share of its training steps that a cell has done; None before it tells."""
    done = len(_train_rows(Path(order.folder)))
    return done / order.steps if order.steps and done >= _FEW else None


def from_earlier(todo: Sequence[Cell], every: Sequence[Cell], folder: Folder) -> tuple[float, str] | None:
    """Seconds of all of ``todo`` that train, and what tells so; None if nothing does. ``every``: the sweep's cells."""
    training = [cell for cell in todo if cell.trains]
    took = [outcome.wall_s for cell in every if cell.trains and (outcome := folder.any_outcome(cell.id))]
    if took:
        return fmean(took) * len(training), f"{len(took)} that are done took {fmean(took) / 60:.1f} minutes each"
    if not training:
        return None
    config = training[0].config
    found = [file.parent for file in config.root.glob(f"*/{CONFIG}")]
    for run in sorted(found, key=lambda one: -(one / CONFIG).stat().st_mtime)[:_RUNS]:
        rows = [row["time/step_s"] for row in _train_rows(run) if isinstance(row.get("time/step_s"), int | float)]
        try:
            alike = run_config(run).model == config.model
        except UserError:  # another version's
            continue
        if rows and alike:
            seconds = sum(fmean(rows) * cell.config.trainer.steps for cell in training)
            return seconds, f"a training step of {run} took {fmean(rows):.1f} s; evaluations come on top"
    return None


def _train_rows(folder: Path) -> list[dict]:
    file = folder / "metrics.jsonl"
    try:
        return train_rows(file) if file.is_file() else []
    except UserError:  # damaged, or being written
        return []
