"""The contract of a reward: one class with its section, its parts, their weights and their sum. No torch.

A reward is a class derived from :class:`Reward`, named by ``rewards.name: package.module:Class``; its fields
are the section's keys. Methods are pure functions of the episode or the training step, so that a resumed run
and ``parl rescore`` compute the same. Example: examples/reward.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator

from envs.base import Score
from rewards.outcome.sections import CommandSection, JudgeSection
from rollouts.costs import LatencyModel
from rollouts.episode import Episode

Parts = dict[str, float]  # by name, unweighted
Weights = dict[str, float]  # by tracked name: lambda/NAME

PERF, TOTAL = "perf", "total"


class Reward(BaseModel):
    """r = perf + Σ weight · part, where ``perf`` is the score of the answer; a class may override it.

    Rewards compare the episodes of one task with each other, so only differences matter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: ClassVar[bool] = False  # set to read messages, tool calls or results, also of stored episodes

    name: str = Field(description="the reward: parl, package.module:Class, or an installed entry point")
    function: str | None = Field(default=None, description="scores tasks of gold kind function: package.module:score")
    judge: JudgeSection | None = Field(default=None, description="scores tasks of gold kind judge: a model's server")
    command: CommandSection = CommandSection()
    range: tuple[float, float] | None = Field(
        default=None, description="lowest and highest score of function, judge or command; null = 0 and 1"
    )
    latency: LatencyModel = LatencyModel()

    @field_validator("range")
    @classmethod
    def _rises(cls, range: tuple[float, float] | None) -> tuple[float, float] | None:
        if range is not None and not range[0] < range[1]:
            raise ValueError(f"{list(range)} must be the lowest and the highest score, in this order")
        return range

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and highest score."""
        return self.range or (0.0, 1.0)

    def parts(self, episode: Episode, score: Score | None) -> Parts:
        """The parts besides ``perf``, unweighted, by name; a ``perf`` here replaces the answer's score.

        ``score``: that of the episode or its answer, None if nothing scores it. When a stored episode is
        scored again, its traces have turns, spans and statuses but no tokens; see ``texts``.
        """
        return {}

    def noted(self, group: Sequence[Episode], solved: Sequence[Episode]) -> Mapping[str, float]:
        """What the episodes of one task say about each other, before they are scored: metrics of each of them.

        ``group``: those that count; ``solved``: those of them that solved the task. They are stored with the
        episodes, so that one of them can be scored again alone. An evaluation has none.
        """
        return {}

    def weights(self, step: int, steps: int) -> Weights:
        """The weights of training step ``step`` (from 0) of ``steps`` steps. Each is tracked."""
        return {}

    def observed(self, seen: Mapping[str, float], episodes: Sequence[Episode], step: int, steps: int) -> Weights:
        """What a schedule by measurement knows after ``step`` and its scored ``episodes``; ``seen``: before.

        It is in the run's checkpoints. At the start, and where weights follow from the step alone, it is empty.
        """
        return {}

    def weights_after(self, seen: Mapping[str, float], step: int, steps: int) -> Weights:
        """The weights of ``step``, given what :meth:`observed` returned, or an episode's metrics with :meth:`told`."""
        return self.weights(step, steps)

    def told(self, seen: Mapping[str, float]) -> Mapping[str, float]:
        """What of ``seen`` is stored with a step's episodes as metrics, so that one alone is scored again the same."""
        return {}

    def shown(self, seen: Mapping[str, float]) -> dict[str, float]:
        """The tracked metrics of ``seen``."""
        return {}

    def held_out(self) -> Weights:
        """The weights of an evaluation: those at the end of training."""
        return self.weights(1, 1)

    def weighted(self, parts: Parts, weights: Weights) -> Parts:
        """What each part adds to the total, also for means of parts; a part without a weight counts once."""
        return {name: weights.get(name, 1.0) * value for name, value in parts.items()}

    def total(self, parts: Parts, weights: Weights) -> float:
        """The reward: the sum of the weighted parts."""
        return sum(self.weighted(parts, weights).values())

    def outcome(self, episode: Episode) -> float:
        """What a scored episode would earn in an evaluation, without what only training pays for."""
        parts = {name: value for name, value in episode.rewards.items() if name != TOTAL}
        return self.total(parts, self.held_out())

    def alone(self) -> Self:
        """The reward of a single agent, which cannot spawn."""
        return self


def check_reward(kind: type) -> None:
    """ValueError unless ``kind`` is a reward."""
    if not issubclass(kind, Reward):
        raise ValueError("it must derive from rewards.base.Reward")
