"""The state of a training run, and its checkpoints on disk.

Everything random is a function of (seed, step), so the step is the cursor of data, schedules and noise. A
checkpoint is a folder that is renamed into place when complete: a run killed at any byte finds the last good
one. Its manifest holds size and SHA-256 of every file, checked before anything is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.files import sync, write_text
from parl.errors import MachineError, UserError
from parl.shown.terminal import echo

if TYPE_CHECKING:  # torch, not needed to read a state
    from parl.learn.shard.parts import Part

MANIFEST = "manifest.json"
_ROOM = 16 * 2**20  # bytes that a checkpoint leaves free for episodes and logs


@dataclass(slots=True, kw_only=True)
class State:
    """The state of a run after ``step`` finished steps."""

    step: int = 0
    policy_version: int = 0
    tasks_drawn: int = 0  # cursor in the task stream
    episodes: int = 0  # trained so far
    wandb_id: str | None = None
    elapsed_s: float = 0.0
    schedule: dict[str, float] = field(default_factory=dict)  # what a schedule of λ by measurement has seen


class Checkpoints:
    """``folder``/step-000012 with the learner's parts and a manifest; the newest ``keep``, and the best."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*.partial"):
            shutil.rmtree(leftover)

    def begin(self, state: State, needed: int) -> Path:
        """An empty folder for ``needed`` bytes. Raises MachineError if the disk has no room."""
        path = self.folder / f"step-{state.step:06d}.partial"
        shutil.rmtree(path, ignore_errors=True)
        free = shutil.disk_usage(self.folder).free
        if free < needed + _ROOM:
            raise MachineError(
                f"{self.folder}: a checkpoint needs {needed} bytes and {_ROOM} to spare, but {free} are free;"
                " free some and --resume"
            )
        path.mkdir()
        return path

    def commit(self, state: State, path: Path, parts: Sequence[Part] = (), score: float | None = None) -> Path:
        """Add the manifest to the learner's ``parts`` in ``path``, flush, and drop old checkpoints.

        The best has the highest ``score``; of equals the newest.
        """
        manifest = {"state": asdict(state), "score": score, "parts": [asdict(part) for part in parts]}
        write_text(path / MANIFEST, json.dumps(manifest, indent=1))
        final = path.with_suffix("")
        if final.exists():
            self._drop(final)
        os.rename(path, final)
        sync(self.folder)
        kept = [*self.all()[-self._keep :], self.best()]
        for old in self.all():
            if old not in kept:
                self._drop(old)
        return final

    def _drop(self, path: Path) -> None:
        """Delete; a kill halfway leaves a temporary folder, not a damaged checkpoint."""
        aside = path.with_name(f"{path.name}.old.partial")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        shutil.rmtree(aside)

    def all(self) -> list[Path]:
        """Complete checkpoints, oldest first, without checking their files."""
        return complete(self.folder)

    def best(self) -> Path | None:
        """The checkpoint with the highest score."""
        scored = [(score, path) for path in self.all() if (score := _manifest(path).get("score")) is not None]
        return max(scored)[1] if scored else None

    def latest(self) -> tuple[State, Path] | None:
        """The newest intact checkpoint; reports damaged ones. UserError if all are damaged."""
        from parl.learn.shard.parts import Part, damage

        found, problems = self.all(), []
        for path in reversed(found):
            manifest = _manifest(path)
            wrong = [text for part in manifest.get("parts", ()) if (text := damage(path, Part(**part)))]
            wrong += [f"{MANIFEST} cannot be read"] * (not manifest)
            if not wrong:
                return State(**manifest["state"]), path
            problems.append(f"{path} is damaged: {wrong[0]}")
            echo(f"{problems[-1]}; trying the one before")
        if problems:
            raise UserError("; ".join(problems) + ": no checkpoint is intact; restore one, or start without --resume")
        return None


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in ``folder``, oldest first; read-only, also during a run."""
    return sorted(path for path in folder.glob("step-*") if path.suffix == "" and (path / MANIFEST).exists())


def newest_state(folder: Path) -> State:
    """The state of the newest checkpoint of the run in ``folder``, or a new state.

    Read-only, and without the learner's files. UserError if none of the checkpoints can be read.
    """
    found = complete(folder / "checkpoints")
    read = [manifest for path in found if (manifest := _manifest(path))]
    if found and not read:
        damaged = "; ".join(f"{path / MANIFEST} is damaged" for path in found)
        raise UserError(f"{damaged}: no checkpoint can be read; restore one, or start without --resume")
    return State(**read[-1]["state"]) if read else State()


def _manifest(path: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in ``path``; empty if damaged."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        state = State(**manifest["state"])
        parts, score = manifest.get("parts", []), manifest.get("score")
        whole = isinstance(score, int | float | None) and all(map(_is_part, parts))
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
    if not isinstance(state.schedule, dict):
        return {}
    numbers = (state.step, state.policy_version, state.tasks_drawn, state.episodes, state.elapsed_s)
    numbers += tuple(state.schedule.values())
    return manifest if whole and all(isinstance(number, int | float) for number in numbers) else {}


def _is_part(part: dict[str, Any]) -> bool:
    """Whether it has the form of a manifest's file entry."""
    kinds = {"file": str, "bytes": int, "sha256": str}
    known = part.keys() == kinds.keys() and all(type(part[name]) is kind for name, kind in kinds.items())
    return known and Path(part["file"]).name == part["file"]
