"""Which episodes run again, how often, and when a step is given up.

A step is trained whole or not at all: episodes with a machine fault run again, with the same seed, until they
end by the policy's actions. If that fails repeatedly the run ends (MachineError), since the other episodes
are a biased sample: a hung engine of the sub-agents spares those that spawned none. An episode that failed by
the program's own error (a tool that raises) is run again once; then it stays FAILED, is not trained, and is
reported. One that used up its own time (``episode_s``) is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence

from envs.base import Task
from parl.errors import MachineError
from parl.shown.terminal import echo
from rollouts.episode import MACHINE, Episode, EpisodeStatus

TRIES = {MACHINE: 4, "": 1}  # by Episode.limit: how often a failed one runs again
_PAUSE_S = 1.0  # before the first rerun; doubled each time


class StepFailed(MachineError, RuntimeError):
    """A step's episodes could not be collected; nothing of it is trained."""


class Tries:
    """How often the episodes of one group ran again. ``pause_s``: wait before the next time."""

    def __init__(self) -> None:
        self._count, self.pause_s = 0, 0.0

    def again(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Those of ``episodes`` to run again."""
        failed = [episode for episode in episodes if episode.status is EpisodeStatus.FAILED]
        if not (again := [episode for episode in failed if self._count < TRIES.get(episode.limit, 0)]):
            self.pause_s = 0.0  # what was to wait has waited: a group that is halted later goes on at once
            return []
        echo(f"{_of(again)}: run again ({again[0].error})", err=True)
        self._count, self.pause_s = self._count + 1, _PAUSE_S * 2**self._count
        return again


class Group:
    """The requested attempts at one task. ``missing``: those still to run."""

    def __init__(self, task: Task, attempts: list[int]) -> None:
        self.task, self.missing = task, attempts
        self._order, self._found, self._tries = list(attempts), dict[int, Episode](), Tries()

    def take(self, episodes: Sequence[Episode]) -> None:
        """Record ended episodes."""
        again = self._tries.again(episodes)
        self._found |= {episode.index: episode for episode in episodes}
        self.missing = [episode.index for episode in again]

    @property
    def pause_s(self) -> float:
        """Seconds to wait before the next call."""
        return self._tries.pause_s

    @property
    def episodes(self) -> list[Episode]:
        """All episodes, in the requested order."""
        return [self._found[index] for index in self._order]


def whole(episodes: list[Episode]) -> list[Episode]:
    """``episodes``, reporting failed ones. StepFailed if all failed, or because of the machine."""
    if episodes and all(episode.void for episode in episodes):
        raise StepFailed(f"all {len(episodes)} episodes failed, the first of: {episodes[0].error}")
    if hurt := [episode for episode in episodes if episode.limit == MACHINE]:
        raise StepFailed(f"{_of(hurt)} failed again and again, so nothing of this step is trained: {hurt[0].error}")
    if void := [episode for episode in episodes if episode.void]:
        echo(f"{_of(void)} of {len(episodes)} failed and count for nothing: {void[0].error}", err=True)
    return episodes


def _of(episodes: Sequence[Episode]) -> str:
    first = f"{episodes[0].task.key}#{episodes[0].index}"
    return f"1 episode ({first})" if len(episodes) == 1 else f"{len(episodes)} episodes ({first}, ...)"
