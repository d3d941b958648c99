"""Your own reward. With this file's folder on PYTHONPATH:

rewards: {name: "reward:Convex", share: 0.1, cap: 8}

The convex form of Moonshot's blog of 27 January 2026:

    r = λ · parallel + (1 − λ) · solved,     solved = perf if the answer is wholly right, else 0

λ falls from ``share`` to 0 over the run. A partly right answer earns nothing; there is no term for time.
"""

from __future__ import annotations

from pydantic import Field

from envs.base import Score
from rewards.base import Parts, Reward, Weights
from rollouts.episode import Episode


class Convex(Reward):
    """The section, the parts, their weights over time. The total is their weighted sum."""

    share: float = Field(default=0.1, ge=0, le=1, description="λ at the start")
    cap: int = Field(default=8, gt=0, description="sub-agents at which parallel reaches 1")

    def parts(self, episode: Episode, score: Score | None) -> Parts:
        """Tracked as ``reward/NAME``, as is ``perf``, the answer's score."""
        solved = score.value if score and score.solved else 0.0
        return {"parallel": min(len(episode.subagents), self.cap) / self.cap, "solved": solved}

    def weights(self, step: int, steps: int) -> Weights:
        """Tracked as ``lambda/NAME``. ``perf`` is tracked but not rewarded."""
        share = self.share * max(0.0, 1 - step / max(steps - 1, 1))
        return {"perf": 0.0, "parallel": share, "solved": 1 - share}

    def alone(self) -> Convex:
        """A single agent cannot spawn, so only its answers are rewarded."""
        return self.model_copy(update={"share": 0.0})
