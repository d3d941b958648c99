"""``parl sweep``: the stages of a sweep, from cold starts to its report. No torch in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from parl.errors import UserError
from parl.machine.ownership import owning
from parl.shown.terminal import echo
from parl.sweep.cells import COLD, Cell, cells, cold_starts, differences, folder_of, trials
from parl.sweep.estimate import Clock, from_earlier
from parl.sweep.file import Overrides, Sweep, read_sweep
from parl.sweep.kept import keep_cells, take_back
from parl.sweep.processes import Processes
from parl.sweep.results.aggregate import aggregate, load_done
from parl.sweep.results.page import keep_results, write_results
from parl.sweep.show import Show
from parl.sweep.state import Folder, Order, changed, refuse
from parl.track.progress import clock


def run_sweep(
    file: Path,
    *,
    dry_run: bool = False,
    jobs: int = 1,
    only: Sequence[str] = (),
    report: bool = False,
    again: bool = False,
    keep: Path | None = None,
) -> list[str]:
    """Run what is missing of the sweep in ``file``, and write its results; returns the cells that failed.

    ``only``: these arms. ``report``: run nothing. ``again``: run cells anew whose configuration changed. ``keep``: a
    folder for a copy of the results, from which finished cells that are not here are taken. UserError for mistakes with
    a fix.
    """
    sweep = read_sweep(file)
    if wrong := [arm for arm in only if arm not in sweep.arms]:
        raise UserError(f"--only {wrong[0]}: no arm is called so; there are: {', '.join(sweep.arms)}")
    folder = Folder(folder_of(sweep))
    if dry_run:
        _show_plan(sweep, folder, only)
        return []
    if report:
        _write_report(sweep, folder, file, keep)
        return []
    with owning(folder.path, "a sweep", "wait for it, or take another name in the sweep's file"):
        if keep:
            _take_back(sweep, folder, keep)
        stages = _Stages(sweep, folder, only, again)
        failed = stages.run(jobs)
        if any(folder.outcome(cell) for cell in cells(sweep, stages.chosen)):
            _write_report(sweep, folder, file, keep)
        else:
            echo(f"nothing to report: no cell of sweep {sweep.name} is done", err=True)
    return failed


class _Stages:
    """Cold starts, then trials, then the cells."""

    def __init__(self, sweep: Sweep, folder: Folder, only: Sequence[str], again: bool) -> None:
        self._sweep, self._folder, self._only, self._again = sweep, folder, only, again
        self.chosen: dict[str, Overrides] = {}
        self._failed: list[str] = []

    def _wanted(self, some: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in some if not self._only or cell.arm in self._only]

    def run(self, jobs: int) -> list[str]:
        """Run all stages; returns the cells that failed, also for a cold start or a trial."""
        tried = self._wanted(trials(self._sweep))
        self.chosen = choices(self._sweep, self._folder, tried)
        known = self._wanted(cells(self._sweep, self.chosen))
        settled = [cell for cell in known if not self._sweep.tuned(cell.arm) or cell.arm in self.chosen]
        found = changed([*tried, *settled])
        if not self._again:
            refuse(found, self._sweep.name)
        todo = [cell for cell in [*tried, *known] if self._folder.outcome(cell) is None]
        starts = cold_starts(todo)
        skipped = len(tried) + len(known) - len(todo)
        if skipped:
            echo(f"{skipped} of {len(tried) + len(known)} cells are done already")
        times = Clock(self._folder, [*tried, *known])
        with Show(f"sweep {self._sweep.name}", len(starts) + len(todo), jobs, times) as show:
            processes = Processes(self._folder, jobs, show, times)
            show.stages(self._orders([*(cell for cell in todo)], ()))
            processes.run(self._orders(starts, ()))
            lost = {cell.cold for cell in starts if cell.id in processes.failed}
            self._without(todo, lost, show, "its cold start failed")
            show.stages(self._orders([cell for cell in known if cell in todo], ()))
            processes.run(self._orders([cell for cell in tried if self._open(cell, lost)], found))
            self.chosen = choices(self._sweep, self._folder, tried)
            resolved = self._wanted(cells(self._sweep, self.chosen))
            unsettled = {cell.arm for cell in tried} - self.chosen.keys()
            self._failed += [cell.id for cell in resolved if cell.arm in unsettled]
            found = changed(resolved)
            if not self._again:
                refuse(found, self._sweep.name)
            show.stages(())
            left = [cell for cell in resolved if cell.arm not in unsettled and self._open(cell, lost)]
            processes.run(self._orders(left, found))
        return list(dict.fromkeys([*processes.failed, *self._failed]))

    def _open(self, cell: Cell, lost: set[str]) -> bool:
        return cell.cold not in lost and self._folder.outcome(cell) is None

    def _without(self, todo: Sequence[Cell], lost: set[str], show: Show, why: str) -> None:
        out = [cell.id for cell in todo if cell.cold in lost]
        self._failed += out
        if out:
            show.tell(f"not run, {why}: {', '.join(out)}")

    def _orders(self, some: Sequence[Cell], anew: Sequence[str] | dict[str, list[str]]) -> list[Order]:
        base, choose = self._sweep.base, self._sweep.choose
        return [Order.of(cell, base, choose, anew=cell.id in anew) for cell in some]


def choices(sweep: Sweep, folder: Folder, tried: Sequence[Cell]) -> dict[str, Overrides]:
    """By arm, the value of ``choose.grid`` with the best score on val, of equals the smallest.

    An arm with a trial that is not done has none yet.
    """
    return {arm: min(own, key=_order)[1] for arm, own in _scores(sweep, folder, tried).items()}


def _order(pair: tuple[float, Overrides]) -> tuple:
    return -pair[0], *map(_size, pair[1].values())


def _scores(sweep: Sweep, folder: Folder, tried: Sequence[Cell]) -> dict[str, list[tuple[float, Overrides]]]:
    """By arm whose trials are all done: each one's score on val, with its value of ``choose.grid``."""
    keys = list(sweep.choose.grid) if sweep.choose else []
    found: dict[str, list[tuple[float, Overrides]]] = {}
    for arm in dict.fromkeys(cell.arm for cell in tried):
        own = [(cell, folder.outcome(cell)) for cell in tried if cell.arm == arm]
        scores = [(outcome.score, {key: cell.overrides[key] for key in keys}) for cell, outcome in own if outcome]
        if len(scores) == len(own):
            found[arm] = scores
    return found


def chosen_table(sweep: Sweep, folder: Folder) -> dict[str, dict]:
    """What was chosen for each arm, and among what."""
    tried = trials(sweep)
    chosen = choices(sweep, folder, tried)
    return {
        arm: {"chosen": chosen[arm], "scores": [{"score": score} | values for score, values in scores]}
        for arm, scores in _scores(sweep, folder, tried).items()
    }


def _size(text: str) -> tuple[float, str]:
    """Numbers by size, then words."""
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def _show_plan(sweep: Sweep, folder: Folder, only: Sequence[str]) -> None:
    """Print all cells with what they resolve to, and an estimate."""
    tried = [cell for cell in trials(sweep) if not only or cell.arm in only]
    chosen = choices(sweep, folder, tried)
    own = [cell for cell in cells(sweep, chosen) if not only or cell.arm in only]
    every = [*cold_starts([*tried, *own]), *tried, *own]
    refused = changed([*tried, *own])
    resolved = differences([*tried, *own])
    for cell in every:
        parts = [f"{key}={json.dumps(value)}" for key, value in resolved.get(cell.id, {}).items()]
        if sweep.tuned(cell.arm) and not cell.trial and cell.arm not in chosen and sweep.choose:
            parts += [f"{key} as chosen" for key in sweep.choose.grid]
        evaluated = [] if cell.trains or cell.policy == COLD else [f"only evaluates {cell.policy}"]
        state = "done" if folder.outcome(cell) else "CHANGED" if cell.id in refused else "to do"
        echo(f"{cell.id} [{state}]: {', '.join([*evaluated, *parts]) or cell.cold}")
    todo = [cell for cell in every if folder.outcome(cell) is None]
    count = sum(cell.trains for cell in every)
    echo(f"# {len(every)} cells in {folder.path}: {count} train, {len(todo)} are to do")
    found = from_earlier(todo, every, folder) if todo else None
    if found:
        echo(f"# about {clock(found[0])} one at a time: {found[1]}")
    elif todo:
        echo("# no earlier run tells how long they take")


def _take_back(sweep: Sweep, folder: Folder, kept: Path) -> None:
    tried = trials(sweep)
    found = take_back(folder, tried, kept)
    found += take_back(folder, cells(sweep, choices(sweep, folder, tried)), kept)
    if found:
        echo(f"{len(found)} finished cells are taken from {kept}")


def _write_report(sweep: Sweep, folder: Folder, file: Path, keep: Path | None) -> None:
    tried = trials(sweep)
    every = cells(sweep, choices(sweep, folder, tried))
    finished = [(cell, outcome) for cell in every if (outcome := folder.outcome(cell))]
    results = aggregate(sweep, load_done(finished), cells=len(every)) | {"chosen": chosen_table(sweep, folder)}
    page = write_results(results, folder.path)
    echo(f"{results['done']} of {results['cells']} cells; results: {folder.path / 'results.json'}, page: {page}")
    if keep:
        keep_results(folder.path, keep, file)
        keep_cells(folder, [*tried, *every], keep)
        echo(f"kept in {keep}")
