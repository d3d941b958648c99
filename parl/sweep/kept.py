"""The finished cells of a sweep in a folder that can be published, from which a sweep goes on elsewhere. No torch.

``KEPT/cells/ID.json``: the outcome of a cell. ``KEPT/cells/ID``: its evaluation's episodes and the numbers of its
training. Weights and training episodes are not kept.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from model.files import replacing
from parl.sweep.cells import Cell
from parl.sweep.state import Folder

_CELLS, _METRICS = "cells", "metrics.jsonl"


def keep_cells(folder: Folder, some: Iterable[Cell], kept: Path) -> None:
    """Copy those of ``some`` that are done from the sweep's ``folder`` to ``kept``."""
    for cell in some:
        if outcome := folder.outcome(cell):
            run = cell.config.run_dir
            _copied(run, kept / _CELLS / cell.id, [*([outcome.store] if outcome.store else []), _METRICS])
            _copy(folder.done(cell.id), kept / _CELLS / f"{cell.id}.json")


def take_back(folder: Folder, some: Iterable[Cell], kept: Path) -> list[str]:
    """Copy those of ``some`` that ``kept`` has, as they are configured now, to ``folder``; returns their names.

    A cell that is done, or whose run has begun, stays as it is.
    """
    found = []
    for cell in some:
        run, file = cell.config.run_dir, kept / _CELLS / f"{cell.id}.json"
        if folder.any_outcome(cell.id) or run.exists() or not file.is_file():
            continue
        _copy(file, folder.done(cell.id))
        if outcome := folder.outcome(cell):
            _copied(kept / _CELLS / cell.id, run, [*([outcome.store] if outcome.store else []), _METRICS])
            found.append(cell.id)
        else:
            folder.done(cell.id).unlink()  # of another configuration
    return found


def _copied(source: Path, target: Path, parts: Iterable[str]) -> None:
    for part in parts:
        if (source / part).exists():
            _copy(source / part, target / part)


def _copy(source: Path, target: Path) -> None:
    """A file or a folder, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial:
        if source.is_dir():
            shutil.copytree(source, partial, ignore=shutil.ignore_patterns("*.lock"))
        else:
            shutil.copyfile(source, partial)
