"""Saves the learner's state while the run continues.

The ranks copy their parts to host memory, which is all that the loop waits for. A thread then lets each write
its copy, and commits the checkpoint. A second save waits for the first. A failed save ends the run at its
next step; earlier checkpoints stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from parl.errors import MachineError
from parl.learn.group import LearnerGroup
from parl.run.checkpoints import Checkpoints, State
from parl.shown.terminal import echo


class Saver:
    """``learner``'s checkpoints in ``checkpoints``."""

    def __init__(self, checkpoints: Checkpoints, learner: LearnerGroup) -> None:
        self._checkpoints, self._learner = checkpoints, learner
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[Path] | None = None
        self._path: Path

    def save(self, state: State, score: float | None = None, beside: Callable[[Path], None] | None = None) -> None:
        """Start saving the current state of ``state`` and the learner. MachineError if there is no room.

        ``beside`` writes more files into the checkpoint's folder before this returns.
        """
        self.wait()
        self._path = self._checkpoints.begin(state, self._learner.snapshot())
        if beside:
            beside(self._path)
        self._pending = self._thread.submit(self._write, replace(state), score, self._path)

    def _write(self, state: State, score: float | None, path: Path) -> Path:
        return self._checkpoints.commit(state, path, self._learner.write_snapshot(path), score)

    def check(self) -> None:
        """Raise the error of the current save, if any, without waiting."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the current save is on disk. MachineError if it failed."""
        pending, self._pending = self._pending, None
        error = pending.exception() if pending else None
        if error is None:
            return
        shutil.rmtree(self._path, ignore_errors=True)
        if not isinstance(error, OSError):
            raise error
        kept = self._checkpoints.all()
        raise MachineError(
            f"{self._path.with_suffix('')} could not be written: {str(error).splitlines()[-1]}."
            f" {kept[-1] if kept else 'No checkpoint'} is the newest: make room and --resume"
        ) from error

    def save_last(self, state: State | None) -> None:
        """The run is ended from outside: save ``state`` if it is a whole step that is not on disk yet.

        None in the middle of a learner step, or while a stream's groups are in transfer.
        """
        if state is None:
            return
        try:
            self.save(state)
            self.wait()
        except Exception as error:  # the machine may be ending the run
            echo(f"step {state.step} was not kept: {error}", err=True)

    def close(self) -> None:
        """Wait for the current save; report its error."""
        error = self._pending.exception() if self._pending else None
        if error is not None:
            echo(f"the last checkpoint was not written: {error}")
        self._thread.shutdown()
