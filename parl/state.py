"""The one state of a training run, and its checkpoints on disk.

Everything random is a function of (seed, step), so the step is the cursor of data, schedules and noise alike. A
checkpoint is a folder that is renamed into place when complete: a run killed at any byte finds the last good one.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from parl.errors import UserError

_SLACK = 3  # free disk wanted, in checkpoints


@dataclass(slots=True, kw_only=True)
class State:
    """Where a run stands after ``step`` finished steps."""

    step: int = 0
    policy_version: int = 0
    tasks_drawn: int = 0  # cursor in the task stream
    episodes: int = 0  # episodes trained on so far
    wandb_id: str | None = None
    elapsed_s: float = 0.0


class Checkpoints:
    """``folder``/step-000012 with the learner's files and ``state.json``; the newest ``keep`` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.partial"):
            shutil.rmtree(leftover)

    def begin(self, state: State, expected_bytes: int) -> Path:
        """An empty folder to save into. Raises UserError when the disk has no room for it."""
        free = shutil.disk_usage(self.folder).free
        if free < _SLACK * expected_bytes:
            raise UserError(
                f"only {free / 2**20:.0f} MiB free for checkpoints in {self.folder}: free some and --resume"
            )
        path = self.folder / f"step-{state.step:06d}.partial"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path

    def commit(self, state: State, path: Path) -> Path:
        """The learner's files are in ``path``: add the state, make it durable, drop old ones."""
        with (path / "state.json").open("w") as file:
            json.dump(asdict(state), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        final = path.with_suffix("")
        if final.exists():
            shutil.rmtree(final)
        os.rename(path, final)
        for old in self.all()[: -self._keep]:
            shutil.rmtree(old)
        return final

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(
            path for path in self.folder.glob("step-*") if path.suffix == "" and (path / "state.json").exists()
        )

    def latest(self) -> tuple[State, Path] | None:
        """The newest complete checkpoint."""
        found = self.all()
        if not found:
            return None
        return State(**json.loads((found[-1] / "state.json").read_text())), found[-1]
