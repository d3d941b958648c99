"""Settings of rollouts. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from envs.base import Role
from rollouts.engine.address import check_address, check_key, check_place, shown
from rollouts.engine.base import EmbeddedConfig, EngineConfig
from rollouts.prompts import PromptsConfig


class CurriculumConfig(BaseModel):
    """Critical budgets that begin with slack and become tight over training. Evaluations have the tight ones."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slack: float = Field(default=1.0, ge=1, description="factor of the critical budget at the start; 1 = off")
    until: float = Field(default=0.5, gt=0, le=1, description="share of the steps after which the budget is tight")
    stairs: int | None = Field(
        default=None, gt=0, description="fall in so many equal stairs; null = a little with every step"
    )

    def slack_at(self, step: int, steps: int) -> float:
        """The factor in training step ``step`` (from 0) of ``steps``: from ``slack`` down to 1.

        1 + (slack − 1) · (1 − step / end), end = min(until · steps, steps − 1); with stairs step / end is rounded
        down to a multiple of 1 / stairs.
        """
        end = min(self.until * steps, steps - 1)
        if step >= end:
            return 1.0
        share = step / end if self.stairs is None else int(self.stairs * step / end + 1e-9) / self.stairs
        return 1 + (self.slack - 1) * (1 - share)


class BudgetConfig(BaseModel):
    """Limits of one episode. Reaching one ends it; ``Episode.limit`` names it."""

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
    critical_steps: int | None = Field(
        default=None, ge=0, description="the same without an oracle; null = orchestrator_steps, 0 = unlimited"
    )
    curriculum: CurriculumConfig = CurriculumConfig()
    turn_tokens: int = Field(default=512, gt=0, description="sampled tokens of one turn")
    total_tokens: int = Field(default=20_000, gt=0, description="sampled tokens of all agents")
    episode_s: float = Field(default=300.0, gt=0, description="wall-clock deadline")
    call_s: float = Field(default=20.0, gt=0, description="deadline of one tool call")


class ContextConfig(BaseModel):
    """What happens when an agent's context exceeds its limit (``rollouts.swarm.context``)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["none", "hide_tool_result", "discard_all"] = Field(
        default="none", description="what the agent continues with; none = it ends"
    )
    orchestrator_tokens: int | None = Field(default=None, gt=0, description="its limit; None = the model's positions")
    subagent_tokens: int | None = Field(default=None, gt=0, description="the same for each sub-agent")

    @model_validator(mode="after")
    def _check(self) -> ContextConfig:
        if self.policy != "none" and self.orchestrator_tokens is None and self.subagent_tokens is None:
            raise ValueError(
                f"policy={self.policy} has no limit to act at: set orchestrator_tokens, subagent_tokens or both"
            )
        return self


class LimitsConfig(BaseModel):
    """Bounds on time and concurrency; None = none. Deadlines make episodes depend on timing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent_s: float | None = Field(default=None, gt=0, description="wall-clock deadline of each sub-agent")
    stage_s: float | None = Field(default=None, gt=0, description="of all sub-agents of one turn, queueing included")
    subagents: int | None = Field(default=None, gt=0, description="concurrent sub-agents in one worker")
    tool_calls: int | None = Field(default=None, gt=0, description="concurrent tool calls in one worker")


class HttpConfig(BaseModel):
    """Inference servers, for engines behind HTTP (docs/engines.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    urls: tuple[str, ...] = Field(default=(), description="servers of the policy pool, e.g. [http://127.0.0.1:8000]")
    urls_file: str | None = Field(
        default=None, description="a file with these, one a line, read again before each version, instead of `urls`"
    )
    frozen_urls: tuple[str, ...] = Field(default=(), description="servers of the frozen pool; empty: it stays embedded")
    api_key_env: str | None = Field(default=None, description="environment variable with the servers' key")
    weights: Literal["reload", "transfer", "pull", "restart"] = Field(
        default="reload",
        description="how a version reaches a server: from a shared folder, from there in buckets, fetched over the"
        " network, or by `restart`",
    )
    publish: str | None = Field(
        default=None,
        description="for `weights: pull`: where versions are offered, HOST or HOST:PORT of this machine (null ="
        " loopback), or an address of fsspec to write them to, e.g. s3://bucket/run",
    )
    restart: str | None = Field(
        default=None,
        description="shell command that stops the server at {url} and starts it from {folder} in the background;"
        " also used if an update in place fails",
    )
    without_routes: Literal["error", "live"] = Field(
        default="error", description="if a server sends no routes: error, or let the learner choose experts"
    )
    tolerance: float = Field(
        default=0.02, gt=0, description="mean log-prob difference of server and trainer on the probe, in nats"
    )
    update_s: float = Field(default=600.0, gt=0, description="deadline of one update, restart included")

    @field_validator("urls", "frozen_urls")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            check_address(url, "name the environment variable with its key in rollouts.http.api_key_env")
        return urls

    @field_validator("publish")
    @classmethod
    def _place(cls, publish: str | None) -> str | None:
        if publish is not None:
            check_place(publish)
        return publish

    @model_validator(mode="after")
    def _check_pull(self) -> HttpConfig:
        if self.publish is not None and self.weights != "pull":
            raise ValueError(f"publish={shown(self.publish)} is for weights=pull, and weights={self.weights}")
        if self.weights == "pull" and "{folder}" in (self.restart or ""):
            raise ValueError(
                "weights=pull is for servers that cannot read {folder}: let restart start the server from a folder of"
                " its own with the model's config.json and tokenizer, and the weights are fetched"
            )
        return self

    @model_validator(mode="after")
    def _check_key(self) -> HttpConfig:
        for url in (*self.urls, *self.frozen_urls):
            check_key(url, self.api_key_env and "key", self.api_key_env or "")
        return self


class RolloutsConfig(BaseModel):
    """How episodes are made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    swarm: bool = Field(default=True, description="offer create_subagent and assign_task; False = single agent")
    thinking: bool = Field(default=False, description="agents reason before they answer; the tiny policy does not")
    subagent_thinking: bool | None = Field(default=None, description="of sub-agents; null: as `thinking`")
    prompts: PromptsConfig = PromptsConfig()
    group_size: int = Field(default=8, gt=1, description="episodes of one task")
    tasks_per_step: int = Field(default=8, gt=0)
    dynamic_sampling: int | None = Field(
        default=None,
        ge=0,
        description="leave out groups of equal rewards and draw others, at most this many times; null = keep them,"
        " 0 = only leave out",
    )
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature of the policy")
    subagent_temperature: float = Field(default=0.0, ge=0, description="of frozen and refreshed sub-agents; 0 = greedy")
    concurrency: int = Field(default=32, gt=0, description="episodes at once in one worker")
    workers: int = Field(default=1, gt=0, description="Ray rollout workers")
    policy_engines: int = Field(default=1, gt=0, description="replicas of the policy pool")
    frozen_engines: int = Field(default=1, gt=0, description="replicas of the sub-agents' pool, unless co-trained")
    subagent_pool: Literal["frozen", "refreshed", "co_trained"] = Field(
        default="frozen",
        description="sub-agents: the starting policy; the policy of every refresh_every-th version; or the policy"
        " itself, with trained traces",
    )
    refresh_every: int = Field(default=10, gt=0, description="policy versions between two refreshes")
    subagent_policy: Path | None = Field(
        default=None, description="a policy folder for frozen sub-agents, of any shape and the same vocabulary"
    )
    rebalance: bool = Field(
        default=False, description="between steps, an engine may change from the idler pool to the busier one"
    )
    placement: Literal["local", "spread"] = Field(
        default="local", description="sub-agents run on their episode's worker, or on any"
    )
    engine: str = Field(
        default="embedded",
        description="inference engine: embedded, vllm, sglang, package.module:Class, or an installed entry point",
    )
    engine_config: SerializeAsAny[EngineConfig] = EmbeddedConfig()
    http: HttpConfig = HttpConfig()
    score_deadline_s: float = Field(default=60.0, gt=0, description="deadline of scoring one episode")
    max_restarts: int = Field(default=3, ge=0, description="restarts of lost rollout actors per run")
    budget: BudgetConfig = BudgetConfig()
    limits: LimitsConfig = LimitsConfig()
    context: ContextConfig = ContextConfig()

    def thinks(self, role: Role) -> bool:
        """Whether agents of ``role`` reason before they answer."""
        return self.thinking if role is Role.ORCHESTRATOR or self.subagent_thinking is None else self.subagent_thinking

    @model_validator(mode="after")
    def _check(self) -> RolloutsConfig:
        if self.subagent_policy is not None and (self.subagent_pool != "frozen" or self.rebalance):
            raise ValueError(
                f"subagent_policy={self.subagent_policy} is for frozen sub-agents whose engines stay theirs:"
                " set subagent_pool to frozen and rebalance to false, or leave it out"
            )
        if self.rebalance and self.subagent_pool == "co_trained":
            raise ValueError("rebalance=true needs two pools, and subagent_pool=co_trained has one: set it to false")
        if self.http.frozen_urls and (self.subagent_pool == "co_trained" or self.subagent_policy is not None):
            raise ValueError(
                f"http.frozen_urls={list(map(shown, self.http.frozen_urls))} serve the starting policy, or a refreshed"
                " one: leave out subagent_policy, and set subagent_pool to frozen or refreshed"
            )
        return self
