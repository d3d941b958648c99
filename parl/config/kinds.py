"""What can be plugged in: one table of built-ins for each kind, and what a class of that kind must have. No torch."""

from __future__ import annotations

from parl.config.plugin import Kind
from parl.learn.objective.base import check_objective
from rewards.base import check_reward

OBJECTIVES = Kind(
    what="objective",
    built_in={
        "k25": "parl.learn.objective.k25:K25",
        "grpo": "parl.learn.objective.grpo:Grpo",
        "gspo": "parl.learn.objective.gspo:Gspo",
        "cispo": "parl.learn.objective.cispo:Cispo",
    },
    check=check_objective,
)

REWARDS = Kind(what="reward", built_in={"parl": "rewards.parl:Parl"}, check=check_reward)
