"""Saves the learner's state while the run goes on.

The ranks copy their parts of the state to host memory, which is all that the loop waits for. A thread here has each
write its copy, then commits the checkpoint. One save is under way at most: the next one waits for it. A save that
fails ends the run at its next step, and leaves the checkpoints before it as they are.
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
        """Begin to save ``state`` and the learner as they are now. MachineError when there is no room for it.

        ``beside`` writes more into the checkpoint's folder before this returns.
        """
        self.wait()
        self._path = self._checkpoints.begin(state, self._learner.snapshot())
        if beside:
            beside(self._path)
        self._pending = self._thread.submit(self._write, replace(state), score, self._path)

    def _write(self, state: State, score: float | None, path: Path) -> Path:
        return self._checkpoints.commit(state, path, self._learner.write_snapshot(path), score)

    def check(self) -> None:
        """Raise what has gone wrong with the save under way; do not wait for it."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until the save under way is on disk. MachineError when it could not be written."""
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
        """The run is ended from outside: keep ``state`` where that is a whole step that is not on disk yet.

        None where the learner is in the middle of a step, or a stream's groups are on their way to it.
        """
        if state is None:
            return
        try:
            self.save(state)
            self.wait()
        except Exception as error:  # it may be the machine that ends us
            echo(f"step {state.step} was not kept: {error}", err=True)

    def close(self) -> None:
        """Let the save under way end, whatever comes of it; what is wrong is printed."""
        error = self._pending.exception() if self._pending else None
        if error is not None:
            echo(f"the last checkpoint was not written: {error}")
        self._thread.shutdown()
