"""Where an interrupted cold start over given weights goes on: the learner's newest state on disk."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from model.files import write_text
from model.json_file import read_json
from parl.learn.group import LearnerGroup

_STATE = "state.json"


@dataclass(slots=True, kw_only=True)
class State:
    """How far it is. ``batches``: optimiser steps; ``scores``: (tokens, score on val) of every check."""

    batches: int = 0
    tokens: int = 0
    scores: list[tuple[int, float]] = field(default_factory=list)


class Kept:
    """``folder``/batches-N with the learner's parts, and state.json, which names the whole one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._saved = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the last :meth:`save`, or since this was made."""
        return time.monotonic() - self._saved

    def resume(self, learner: LearnerGroup) -> State:
        """The kept state, which ``learner`` takes over; that of a beginning where there is none."""
        if not (self._folder / _STATE).exists():
            return State()
        state = State(**read_json(self._folder / _STATE))
        learner.load(self._folder, self._tag(state))
        return state

    def save(self, learner: LearnerGroup, state: State) -> None:
        """Keep this one, and drop the one before. OSError: a full disk."""
        learner.save(self._folder, self._tag(state))
        self.note(state)
        self._saved = time.monotonic()
        for old in self._folder.glob("batches-*"):
            if old.name != self._tag(state):
                shutil.rmtree(old)

    def note(self, state: State) -> None:
        """Keep the scores of ``state``, whose learner is kept already."""
        write_text(self._folder / _STATE, json.dumps(asdict(state)) + "\n")

    def drop(self) -> None:
        """Forget it."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _tag(self, state: State) -> str:
        return f"batches-{state.batches:06d}"
