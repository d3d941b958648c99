"""Scores an episode when it has ended: by its session, or by the kind of its task's gold.

``table`` and ``exact`` are scored from the stored answer at any time (``rewards.outcome``). A ``function``, a
``judge`` or a ``command`` is asked once, in the rollout worker, and its score is stored with the episode. An
episode without an answer gets their lowest score without being asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from envs.base import Score, Scorer, Session, Task
from rewards.base import Reward
from rewards.outcome import PURE
from rewards.outcome.command import by_command
from rewards.outcome.function import by_function, score_function
from rewards.outcome.judge import Judge
from rollouts.episode import Episode, EpisodeStatus

FUNCTION, JUDGE, COMMAND, NONE = "function", "judge", "command", "none"


class Scoring:
    """A ``rollouts.swarm.scoring.ScoreEpisode``. Sent to workers; clients start with their first episode."""

    def __init__(self, reward: Reward, folder: Path) -> None:
        """``folder`` keeps the judge's verdicts."""
        self._function, self._asked, self._command = reward.function, reward.judge, reward.command
        self._span, self._folder = reward.span, folder
        self._judge: Judge | None = None

    @property
    def judged(self) -> bool:
        """Whether a judge may be asked, whose verdicts are kept in ``folder``."""
        return self._asked is not None

    async def __call__(self, session: Session, episode: Episode) -> Score | None:
        """The score; None if the answer is scored later, or by nothing."""
        kind = episode.task.gold.kind
        if isinstance(session, Scorer) and kind not in (FUNCTION, JUDGE, COMMAND):
            return await session.score(episode)
        if kind in PURE or (kind == NONE and self._function is None):
            return None
        low, high = self._span
        if episode.status is not EpisodeStatus.ANSWERED:
            return Score(value=low, success=False, low=low, high=high)
        if kind == JUDGE:
            assert self._asked is not None  # checked with the tasks
            self._judge = self._judge or Judge(self._asked, self._folder)
            return await self._judge.score(episode, low, high)
        if kind == COMMAND:
            return await by_command(self._command, episode, low, high)
        assert self._function is not None
        return await by_function(self._function, episode, low, high)


def check_scoring(reward: Reward, tasks: Iterable[Task]) -> None:
    """ValueError if some of ``tasks`` could not be scored, or if a key of ``reward`` would score none."""
    kinds: dict[str, Task] = {}
    for task in tasks:
        kinds.setdefault(task.gold.kind, task)
        if task.gold.kind == COMMAND and not (task.gold.command or reward.command.argv):
            raise ValueError(f"task {task.key}: gold.command is missing: give it there, or in rewards.command.argv")
    if reward.function is not None:
        score_function(reward.function)
    for kind, named, example in (
        (FUNCTION, reward.function, "rewards: {function: package.module:score}"),
        (JUDGE, reward.judge, "rewards: {judge: {url: ..., model: ...}}"),
    ):
        if kind in kinds and named is None:
            raise ValueError(f"task {kinds[kind].key}: gold.kind = {kind} needs rewards.{kind}: write {example}")
        scores = kind in kinds or (kind == FUNCTION and NONE in kinds)
        if named is not None and kinds and not scores:
            found = ", ".join(sorted(kinds))
            raise ValueError(
                f"rewards.{kind} would score nothing: the tasks' gold is of kind {found}; write gold: {{kind: {kind}}}"
                f", or leave rewards.{kind} out"
            )
