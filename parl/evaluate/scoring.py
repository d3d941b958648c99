"""The weights for scoring a stored episode: those of its training step, or of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from parl.config.runs import lengths, run_config
from parl.config.schema import Config
from parl.episodes.stores import Store
from parl.errors import UserError
from rewards.base import Reward, Weights
from rewards.score import score_episode
from rollouts.episode import Episode
from rollouts.store.outline import Outline

TRAIN = "train"  # the kind of a training step's shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How episodes are scored: the ``rewards`` section of a configuration, and the run's number of steps."""

    reward: Reward
    steps: int
    lengths: Sequence[Sequence[int]] = ()  # (first step, steps from there on), for a lengthened run

    def _steps(self, step: int) -> int:
        """The run's length when ``step`` was made."""
        return next((steps for first, steps in reversed(self.lengths) if step >= first), self.steps)

    def weights(self, outline: Outline, *, single_agent: bool = False) -> Weights:
        """The weights of a stored episode. The first shard is step 1, trained under the schedule's step 0."""
        reward = self._reward(single_agent)
        step, steps = outline.step - 1, self._steps(outline.step)
        if outline.kind != TRAIN:
            return reward.held_out()
        return reward.weights_after(outline.episode.metrics, step, steps)

    def score(self, outline: Outline, *, single_agent: bool = False) -> Weights:
        """Compute the episode's rewards and metrics; returns the weights used."""
        weights = self.weights(outline, single_agent=single_agent)
        score_episode(outline.episode, self._reward(single_agent), weights)
        return weights

    def score_held_out(self, episode: Episode) -> None:
        """The same for an episode of an evaluation."""
        score_episode(episode, self.reward, self.reward.held_out())

    def _reward(self, single_agent: bool) -> Reward:
        return self.reward.alone() if single_agent else self.reward


def scoring_for(store: Store, rewards: Config | None) -> Scoring:
    """The given configuration's rewards, or those of the store's run.

    ``trainer.steps``, over which λ falls, is the given configuration's if it sets it, else the run's.
    """
    own = run_config(store.run) if store.run else None
    config = rewards or own
    if config is None:
        raise UserError(f"{store.folder} belongs to no run (no config.yaml above it): name one with --rewards CONFIG")
    named = "steps" in config.trainer.model_fields_set
    if store.run is None or own is None or (rewards and named and rewards.trainer.steps != own.trainer.steps):
        return Scoring(reward=config.rewards, steps=config.trainer.steps)
    steps = own.trainer.steps
    return Scoring(reward=config.rewards, steps=steps, lengths=lengths(store.run, steps))
