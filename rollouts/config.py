"""Settings of rollouts. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class BudgetConfig(BaseModel):
    """Limits of one episode. Hitting one ends it, named in ``Episode.limit``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    orchestrator_steps: int = Field(default=48, gt=0)
    subagent_steps: int = Field(default=8, gt=0, description="per sub-agent")
    subagents: int = Field(default=32, gt=0, description="per episode")
    direct_calls: int = Field(
        default=1, gt=0, description="tool calls of one turn besides the spawning ones: a step is one call"
    )
    critical_factor: float = Field(
        default=1.5, gt=0, description="critical steps allowed = factor x the oracle's serial steps + 4"
    )
    turn_tokens: int = Field(default=512, gt=0, description="sampled tokens of one turn")
    total_tokens: int = Field(default=20_000, gt=0, description="sampled tokens of all agents")
    episode_s: float = Field(default=300.0, gt=0, description="wall-clock deadline")
    call_s: float = Field(default=20.0, gt=0, description="deadline of one tool or model call")


class RolloutsConfig(BaseModel):
    """How episodes are made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    swarm: bool = Field(default=True, description="offer create_subagent and assign_task; False = single agent")
    group_size: int = Field(default=8, gt=1, description="episodes of one task")
    tasks_per_step: int = Field(default=8, gt=0)
    dynamic_sampling: int | None = Field(
        default=None,
        ge=0,
        description="leave out groups whose episodes all earned the same, and draw others in their place, so often at"
        " most; null = keep them, 0 = leave out only",
    )
    temperature: float = Field(default=1.0, gt=0, description="of the policy's sampling")
    subagent_temperature: float = Field(default=0.0, ge=0, description="of the frozen sub-agents; 0 = greedy")
    concurrency: int = Field(default=32, gt=0, description="episodes at once in one worker")
    workers: int = Field(default=1, gt=0, description="Ray rollout workers")
    policy_engines: int = Field(default=1, gt=0, description="replicas of the policy pool")
    frozen_engines: int = Field(default=1, gt=0, description="replicas of the frozen sub-agent pool")
    engine: Literal["embedded"] = "embedded"
    max_restarts: int = Field(default=3, ge=0, description="how often dead rollout actors are started again in a run")
    budget: BudgetConfig = BudgetConfig()
