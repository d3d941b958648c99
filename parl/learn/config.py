"""The learner's sections: optimiser, adapters, and how ranks share the policy. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from envs.base import Section
from model.family import Shape

Device = Literal["cpu", "cuda"]


class LoraConfig(Section):
    """Low-rank adapters, trained by AdamW with ``optimizer.lr``; the policy itself is frozen."""

    rank: int = Field(default=16, gt=0)
    alpha: float = Field(default=32.0, gt=0, description="adapters count alpha / rank times")
    targets: tuple[Literal["attention", "shared_experts"], ...] = Field(
        default=("attention", "shared_experts"), min_length=1, description="which matrices get adapters"
    )


class OptimizerConfig(Section):
    """The learner's optimiser in RL: Muon on the matrices, AdamW on the rest."""

    lr: float = Field(default=5e-4, gt=0, description="AdamW")
    muon_lr: float | None = Field(default=1.5e-3, gt=0, description="Muon; null: AdamW for the matrices, too")
    final_lr: float = Field(default=0.1, ge=0, le=1, description="both learning rates fall linearly to this share")
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    freeze_tower: bool = Field(default=False, description="with vision, train the projector alone in RL")
    qk_clip: float | None = Field(
        default=None, gt=0, description="τ of MuonClip: largest attention logit of a head; null = off, K2 has 100"
    )
    lora: LoraConfig | None = Field(
        default=None,
        description="train low-rank adapters only; `{}` = rank 16 on attention and shared experts; null = all weights",
    )

    @model_validator(mode="after")
    def _check(self) -> OptimizerConfig:
        if self.lora and self.qk_clip:
            raise ValueError(f"qk_clip={self.qk_clip:g} scales the matrices that lora freezes: set one of them to null")
        return self


class ParallelConfig(Section):
    """How the learner's ranks share the policy; docs/scaling.md lists the combinations."""

    zero: Literal[0, 1, 2, 3] = Field(
        default=0, description="ZeRO stage: ranks split optimiser states (1), gradients (2), weights (3)"
    )
    expert_parallel: int = Field(default=1, gt=0, description="ranks that split the routed experts")
    offload: Literal["none", "cpu"] = Field(default="none", description="where optimiser states lie")
    recompute: bool = Field(default=False, description="activation recomputation: keep only layers' inputs")


NOT_PARALLEL = ParallelConfig()


def settled(parallel: ParallelConfig, model: Shape, optimizer: OptimizerConfig) -> ParallelConfig:
    """``parallel`` as executed: a policy in bfloat16 trains at ZeRO 2 at least, even on one rank.

    DeepSpeed then keeps float32 masters of the weights and sums the gradients of micro-batches in float32.
    Adapters are float32 and need none.
    """
    if model.weights_dtype == "float32" or optimizer.lora:
        return parallel
    return parallel.model_copy(update={"zero": max(parallel.zero, 2)})


def check_parallel(ranks: int, parallel: ParallelConfig, model: Shape, optimizer: OptimizerConfig) -> None:
    """ValueError for unsupported combinations (docs/scaling.md), with the fix."""
    at = "trainer.parallel"
    degree = parallel.expert_parallel
    if ranks % degree:
        raise ValueError(f"{at}.expert_parallel={degree} must divide trainer.ranks={ranks}")
    experts = model.routes.experts if model.routes else 0
    if degree > 1 and (not experts or experts % degree):
        raise ValueError(f"{at}.expert_parallel={degree} must divide the model's {experts} routed experts: set it to 1")
    if parallel.offload == "cpu" and not parallel.zero:
        raise ValueError(f"{at}.offload=cpu needs {at}.zero of 1 or more, whose states DeepSpeed can offload")
    if model.pictures is not None and (parallel.zero or degree > 1):
        raise ValueError(
            f"{at}: zero={parallel.zero}, expert_parallel={degree} with model.vision: ranks with and without pictures"
            " would wait for each other; use zero=0 and expert_parallel=1"
        )
    if optimizer.lora and (parallel.zero or degree > 1):
        raise ValueError(
            f"{at}: zero={parallel.zero}, expert_parallel={degree} with optimizer.lora: engines are sent adapters,"
            " which every rank must hold whole; use zero=0 and expert_parallel=1, or lora=null"
        )
