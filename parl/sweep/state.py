"""What is on disk of a sweep: what its processes are told, and what they report. No torch.

``SWEEP/cells/ID.json``: what the process of a cell is told. ``SWEEP/done/ID.json``: its outcome. ``SWEEP/logs/ID.log``:
what it printed. The runs' own folders lie beside them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from model.files import write_text
from model.json_file import read_json
from parl.config.load import load_config, to_yaml
from parl.config.runs import CONFIG
from parl.config.schema import Config
from parl.errors import ConfigError, UserError
from parl.run.resume import changes, other_run
from parl.sweep.cells import COLD, Cell
from parl.sweep.file import Choose


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the process of a cell is told: :class:`parl.sweep.cells.Cell` for JSON."""

    id: str
    arm: str
    steps: int  # of training; 0 if nothing is trained
    base: str
    overrides: list[str]
    folder: str
    policy: str
    attempts: int
    trial: bool
    key: str
    metric: str = "reward"
    val_tasks: int = 64
    checkpoint: bool = False  # take the best kept checkpoint, on val
    anew: bool = False  # a run that is there is another one: keep it aside

    @classmethod
    def of(cls, cell: Cell, base: Path, choose: Choose | None, *, anew: bool = False) -> Order:
        """That of ``cell``."""
        judged = choose or Choose()
        return cls(
            id=cell.id,
            arm=cell.arm,
            steps=cell.config.trainer.steps if cell.trains else 0,
            base=str(base),
            overrides=[f"{key}={value}" for key, value in cell.overrides.items()],
            folder=str(cell.config.run_dir),
            policy=cell.policy,
            attempts=cell.attempts,
            trial=cell.trial,
            key=cell.key,
            metric=judged.metric,
            val_tasks=judged.tasks,
            checkpoint=judged.checkpoint,
            anew=anew,
        )

    @property
    def cold_start_alone(self) -> bool:
        """Whether only a cold start is to be made."""
        return self.policy == COLD

    @classmethod
    def read(cls, file: Path) -> Order:
        """That in ``file``; UserError if it is none."""
        try:
            return cls(**read_json(file))
        except (ValueError, TypeError, FileNotFoundError) as error:
            raise UserError(f"{file} is no cell of a sweep ({error})") from None

    def config(self) -> Config:
        """The cell's resolved configuration, which knows its folder."""
        return load_config(self.base, self.overrides).in_folder(Path(self.folder), keep_root=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a finished cell reports.

    ``store``: its episodes, of the policy ``label``. ``scores``: what was judged on val, by checkpoint, the one that
    was taken in ``checkpoint``. ``wall_s``: seconds of its processes, all tries together.
    """

    key: str
    wall_s: float
    store: str = ""
    label: str = ""
    cold: str = ""
    checkpoint: str = ""
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """That on val of what was taken."""
        return self.scores[self.checkpoint]


@dataclass(frozen=True, slots=True)
class Folder:
    """A sweep's folder."""

    path: Path

    def order(self, cell: str) -> Path:
        """What the process of ``cell`` is told."""
        return self.path / "cells" / f"{cell}.json"

    def log(self, cell: str) -> Path:
        """What the process of ``cell`` printed."""
        return self.path / "logs" / f"{cell}.log"

    def done(self, cell: str) -> Path:
        """The file of the outcome of ``cell``."""
        return self.path / "done" / f"{cell}.json"

    def tell(self, order: Order) -> Path:
        """Write ``order`` for its process."""
        return write_text(self.order(order.id), json.dumps(asdict(order), indent=1) + "\n")

    def report(self, cell: str, outcome: Outcome) -> None:
        """Write the outcome of ``cell``."""
        write_text(self.done(cell), json.dumps(asdict(outcome), indent=1) + "\n")

    def outcome(self, cell: Cell) -> Outcome | None:
        """That of ``cell`` as it is configured now; None if there is none."""
        found = self.any_outcome(cell.id)
        return found if found and found.key == cell.key else None

    def any_outcome(self, cell: str) -> Outcome | None:
        """That of ``cell``, however it was configured; None if there is none or it cannot be read."""
        try:
            return Outcome(**read_json(self.done(cell)))
        except (ValueError, TypeError, FileNotFoundError):
            return None


def changed(some: Sequence[Cell]) -> dict[str, list[str]]:
    """By cell, how its configuration differs from that of the run in its folder, if it is another run's."""
    found: dict[str, list[str]] = {}
    for cell in some:
        folder = cell.config.run_dir
        if not cell.trains or not (folder / CONFIG).is_file():
            continue
        try:
            other = other_run(changes(folder, to_yaml(cell.config)))
        except ConfigError as error:
            other = [str(error)]
        if other:
            found[cell.id] = other
    return found


def refuse(found: Mapping[str, list[str]], sweep: str) -> None:
    """UserError that says what changed, if anything did."""
    if not found:
        return
    lines = [f"{cell}: {'; '.join(other)}" for cell, other in found.items()]
    raise UserError(
        f"the folder of sweep {sweep} holds runs with another configuration:\n  - "
        + "\n  - ".join(lines)
        + "\n--again runs these anew (the earlier ones are kept aside); or take another name in the sweep's file"
    )


def as_row(cell: Cell, outcome: Outcome) -> dict[str, Any]:
    """A finished cell for ``results.json``."""
    kept = ("wall_s", "cold", "checkpoint", "scores")
    return {"cell": cell.id, "arm": cell.arm, "at": cell.at} | {name: getattr(outcome, name) for name in kept}
