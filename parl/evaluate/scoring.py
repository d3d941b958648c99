"""Which weights a stored episode is scored with: the schedule at its training step, or λ = 0 in an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from parl.config.errors import UserError
from parl.config.runs import lengths, run_config
from parl.config.schema import Config, RewardsConfig
from parl.episodes.stores import Store
from rewards.parl import Weights
from rewards.schedule import LinearAnneal, RewardSchedule
from rewards.score import score_episode
from rollouts.episode import Episode
from rollouts.store.outline import Outline

TRAIN = "train"  # the kind of a training step's shard


def reward_schedule(rewards: RewardsConfig, steps: int) -> RewardSchedule:
    """The weights of a training run of ``steps`` steps, by step."""
    anneal = {"anneal_fraction": rewards.anneal, "total_steps": steps}
    return RewardSchedule(
        parallel=LinearAnneal(start=rewards.lambda_parallel, **anneal),
        finish=LinearAnneal(start=rewards.lambda_finish, **anneal),
        critical=rewards.critical_penalty,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How episodes are scored: the ``rewards`` section of a configuration over a run of so many steps."""

    rewards: RewardsConfig
    steps: int
    lengths: Sequence[Sequence[int]] = ()  # (first step, steps from there on), where the run was made longer
    _schedules: dict[tuple[bool, int], RewardSchedule] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        alone = self.rewards.model_copy(update={"lambda_parallel": 0.0, "lambda_finish": 0.0})
        for steps in (self.steps, *(steps for _, steps in self.lengths)):
            self._schedules[False, steps] = reward_schedule(self.rewards, steps)
            self._schedules[True, steps] = reward_schedule(alone, steps)

    def _steps(self, step: int) -> int:
        """How long the run was to be when ``step`` was made."""
        return next((steps for first, steps in reversed(self.lengths) if step >= first), self.steps)

    def weights(self, outline: Outline, *, single_agent: bool = False) -> Weights:
        """λ1, λ2 and μ of a stored episode. The first shard is step 1, trained under the schedule's step 0."""
        schedule = self._schedules[single_agent, self._steps(outline.step)]
        return schedule(outline.step - 1) if outline.kind == TRAIN else schedule.held_out

    def score(self, outline: Outline, *, single_agent: bool = False) -> Weights:
        """Fill the episode's rewards and metrics anew; returns the weights used."""
        weights = self.weights(outline, single_agent=single_agent)
        score_episode(outline.episode, weights, self.rewards.parallel_cap)
        return weights

    def score_held_out(self, episode: Episode) -> None:
        """The same for an episode of an evaluation."""
        score_episode(episode, self._schedules[False, self.steps].held_out, self.rewards.parallel_cap)


def scoring_for(store: Store, rewards: Config | None) -> Scoring:
    """The given configuration's rewards, or those of the store's run.

    ``trainer.steps``, over which λ falls, is the given configuration's where it names it, else the run's own.
    """
    own = run_config(store.run) if store.run else None
    config = rewards or own
    if config is None:
        raise UserError(f"{store.folder} belongs to no run (no config.yaml above it): name one with --rewards CONFIG")
    named = "steps" in config.trainer.model_fields_set
    if store.run is None or own is None or (rewards and named and rewards.trainer.steps != own.trainer.steps):
        return Scoring(rewards=config.rewards, steps=config.trainer.steps)
    steps = own.trainer.steps
    return Scoring(rewards=config.rewards, steps=steps, lengths=lengths(store.run, steps))
