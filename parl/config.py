"""The whole configuration, as strict pydantic models. No torch: ``parl --help`` and ``--dry-run`` must be instant."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from envs.world.config import WorldConfig
from model.config import ModelConfig
from rollouts.config import RolloutsConfig


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EnvsConfig(_Section):
    """Where tasks and tools come from."""

    world: WorldConfig = WorldConfig()
    tasks: str | None = Field(
        default=None, description="own tasks: .jsonl, .parquet or a datasets hub id; None = generated"
    )


class TokenizerConfig(_Section):
    """The BPE vocabulary trained on the world's text."""

    vocab_size: int = Field(default=1152, gt=300, description="byte alphabet + merges + special tokens")


class SftConfig(_Section):
    """The cold start: imitation of scripted demonstrations."""

    seed: int = Field(default=1, ge=0)
    tokens: int = Field(default=4_500_000, gt=0, description="training tokens, the drills among them")
    copying_tokens: int = Field(default=160_000, ge=0, description="the first of them: random text that repeats itself")
    drill_tokens: int = Field(
        default=1_200_000, ge=0, description="the next: questions about several facts, lists to go through"
    )
    batch_tokens: int = Field(default=1536, gt=0, description="tokens of one optimiser step")
    lr: float = Field(default=3e-3, gt=0, description="AdamW: embeddings, norms, router")
    muon_lr: float = Field(default=6e-3, gt=0, description="Muon: matrices")
    parallel: float = Field(default=0.3, ge=0, le=1, description="share of demonstrations that spawn where it pays")
    wrong: float = Field(default=0.15, ge=0, le=1, description="share of demonstrations that spawn where it does not")
    observation_weight: float = Field(
        default=0.5, ge=0, description="loss weight of tokens that the agent did not write"
    )


class RewardsConfig(_Section):
    """r = perf + λ1 parallel + λ2 finish - μ critical."""

    lambda_parallel: float = Field(default=0.3, ge=0, description="λ1 at the start")
    lambda_finish: float = Field(default=0.1, ge=0, description="λ2 at the start")
    anneal: float = Field(default=0.5, gt=0, le=1, description="share of the steps after which λ1 = λ2 = 0")
    parallel_cap: int = Field(default=16, gt=0, description="sub-agents at which r_parallel reaches 1")
    critical_penalty: float = Field(default=0.25, ge=0, description="μ, constant; 0 switches the term off")


class ObjectiveConfig(_Section):
    """K2.5's policy objective (report Eq. 1)."""

    log_ratio_min: float = Field(default=-0.5, lt=0, description="α: tokens with a smaller log-ratio get no gradient")
    log_ratio_max: float = Field(default=0.5, gt=0, description="β: tokens with a larger log-ratio get no gradient")
    tau: float = Field(default=0.01, ge=0, description="weight of the squared log-ratio")


class OptimizerConfig(_Section):
    """The learner's optimiser in RL: Muon on the matrices, AdamW on the rest."""

    lr: float = Field(default=5e-4, gt=0, description="AdamW")
    muon_lr: float = Field(default=1.5e-3, gt=0, description="Muon")
    final_lr: float = Field(default=0.1, ge=0, le=1, description="both learning rates fall linearly to this share")
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    freeze_tower: bool = Field(default=False, description="of a policy that sees, train the projector alone in RL")


class TrainerConfig(_Section):
    """The loop."""

    steps: int = Field(default=50, gt=0)
    epochs: int = Field(default=1, gt=0, description="passes over each step's rows")
    minibatches: int = Field(default=2, gt=0, description="optimiser steps of one pass")
    micro_tokens: int = Field(default=8192, gt=0, description="padded tokens of one forward pass")
    ranks: int = Field(default=2, gt=0, description="learner processes, which split the rows")
    threads: int = Field(default=1, gt=0, description="CPU threads of each rank")
    checkpoint_every: int = Field(default=1, gt=0, description="steps between checkpoints")
    keep_checkpoints: int = Field(default=2, gt=0)
    step_s: float = Field(default=900.0, gt=0, description="deadline of one step; a slower one ends the run loudly")


class EvalConfig(_Section):
    """Held-out evaluation."""

    tasks: int = Field(default=160, gt=0, description="held-out tasks, one episode each")
    split: Literal["val", "test"] = "test"
    temperature: float = Field(default=1.0, ge=0, description="0 = greedy")
    seed: int = Field(default=7, ge=0)


class TrackingConfig(_Section):
    """Where numbers go besides metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto = online with a key, else offline"
    )
    project: str = "parl"


class Config(_Section):
    """One run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9._-]+$", description="the run's folder is runs/NAME")
    root: Path = Field(default=Path("runs"), description="folder of all runs")
    seed: int = Field(default=1, ge=0)
    baseline: bool = Field(default=False, description="also train and evaluate the single agent")
    starter: Path | None = Field(default=None, description="shipped cold-start weights, used when their hash matches")
    model: ModelConfig = ModelConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    envs: EnvsConfig = EnvsConfig()
    sft: SftConfig = SftConfig()
    rollouts: RolloutsConfig = RolloutsConfig()
    rewards: RewardsConfig = RewardsConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.tokenizer.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"tokenizer.vocab_size={self.tokenizer.vocab_size} exceeds model.vocab_size={self.model.vocab_size}"
            )
        if self.envs.world.pictures and self.model.vision is None:
            raise ValueError("envs.world.mix asks for pictures, which a policy without model.vision cannot see")
        drills = self.sft.copying_tokens + self.sft.drill_tokens
        if drills >= self.sft.tokens:
            raise ValueError(
                f"sft.copying_tokens + sft.drill_tokens = {drills} leave nothing of sft.tokens={self.sft.tokens}"
                " for demonstrations: lower them or raise sft.tokens"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """Where the run lives; another seed of the same config gets a folder of its own."""
        return self.root / (self.name if self.seed == 1 else f"{self.name}-seed{self.seed}")
