"""Toggle (Kimi K2.5 report): phases in which a solved task pays only within a budget, and phases without one.

    r̃ = r · I{ solved share of the group < enough  or  cost ≤ budget }   in phase 0, 2, ...        r̃ = r in the others

for m training steps each. The report estimates budget(x), a percentile of the solved answers' lengths, once for each
problem; tasks of a stream come once, so here it is that of the group itself. Its lengths are tokens; the same gate on
critical steps is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from rollouts.costs import total_tokens
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode

BUDGET = "toggle_budget"  # metric: what the group's episodes may cost; absent where too few solved the task


class Toggle(BaseModel):
    """Budgeted and free phases in turn. Off unless ``every`` is set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(default=0, ge=0, description="training steps of one phase; 0 = off")
    cost: Literal["tokens", "steps"] = Field(
        default="tokens", description="what the budget limits: sampled tokens of all agents, or critical steps"
    )
    percentile: float = Field(default=90, gt=0, le=100, description="of the costs of the group's solved episodes")
    enough: float = Field(
        default=0.875, ge=0, le=1, description="solved share of a group from which on it has a budget"
    )

    def noted(self, group: Sequence[Episode], solved: Sequence[Episode]) -> Mapping[str, float]:
        """The budget of a group's episodes."""
        if not self.every or not solved or len(solved) / len(group) < self.enough:
            return {}
        return {BUDGET: float(np.percentile([self._cost(episode) for episode in solved], self.percentile))}

    def exceeded(self, episode: Episode) -> bool:
        """Whether the episode costs more than its group's budget."""
        return self._cost(episode) > episode.metrics.get(BUDGET, float("inf"))

    def weight(self, step: int) -> float:
        """1 in budgeted phases, which come first, else 0."""
        return float(bool(self.every) and step // self.every % 2 == 0)

    def _cost(self, episode: Episode) -> int:
        return total_tokens(episode) if self.cost == "tokens" else critical_steps(episode)
