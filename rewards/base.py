"""The contract of a reward: one class holds its section, its parts, their weights over time and their sum. No torch.

A new reward is one file: a class below :class:`Reward`, named in a configuration by ``rewards.name:
package.module:Class``. Its fields are the keys of the section. Whatever it is asked is a pure function of an episode or
of the training step, so that a resumed run and ``parl rescore`` find the same; examples/reward.py is one of one's own.
"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

from rewards.outcome import Outcome
from rollouts.episode import Episode

Parts = dict[str, float]  # by name, unweighted
Weights = dict[str, float]  # by the names under which they are tracked: lambda/NAME

PERF, TOTAL = "perf", "total"


class Reward(BaseModel):
    """r = perf + Σ weight · part, where ``perf`` is the score of the answer; a class may say anything else.

    Rewards compare the episodes of one task with each other, so only differences count.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    texts: ClassVar[bool] = False  # reads messages, tool calls or tool results: then they are read from stores, too

    name: str = Field(description="the reward: parl, package.module:Class, or an installed entry point")

    def parts(self, episode: Episode, outcome: Outcome) -> Parts:
        """What counts besides ``perf``, unweighted, by name; ``perf`` here replaces the answer's score.

        ``outcome``: the score of the answer, 0 unless the episode ended ANSWERED. Of traces only the turns, their
        spans and statuses are there when a stored episode is scored again, not the tokens; see ``texts``.
        """
        return {}

    def weights(self, step: int, steps: int) -> Weights:
        """The weights of training step ``step``, counted from 0, of ``steps`` steps in all. Each is tracked."""
        return {}

    def held_out(self) -> Weights:
        """The weights of an evaluation: those at which training ends."""
        return self.weights(1, 1)

    def weighted(self, parts: Parts, weights: Weights) -> Parts:
        """What each part adds to the total; a part without a weight counts once. Also asked of means of parts."""
        return {name: weights.get(name, 1.0) * value for name, value in parts.items()}

    def total(self, parts: Parts, weights: Weights) -> float:
        """The reward: the sum of the weighted parts."""
        return sum(self.weighted(parts, weights).values())

    def alone(self) -> Self:
        """The same for a single agent, which cannot spawn: without what pays for it."""
        return self


def check_reward(kind: type) -> None:
    """ValueError unless ``kind`` is a reward."""
    if not issubclass(kind, Reward):
        raise ValueError("it must derive from rewards.base.Reward")
