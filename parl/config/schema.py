"""The whole configuration, as strict pydantic models. No torch, so ``parl --help`` is instant."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

from envs.base import Environment, Section
from model.family import Shape
from parl.config.engines import check_engine_fits
from parl.config.plugin import Kind
from parl.config.plugin_kinds import ENVIRONMENTS, FAMILIES, OBJECTIVES, REWARDS
from parl.learn.config import NOT_PARALLEL, LoraConfig, OptimizerConfig, ParallelConfig, check_parallel
from parl.learn.objective.base import Objective
from parl.learn.objective.k25 import K25
from parl.machine.nodes.config import ClusterConfig
from rewards.base import Reward
from rewards.parl_reward import Parl
from rollouts.config import RolloutsConfig
from rollouts.engine.address import check_place


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PolicyFields(Shape):
    """The policy: its shape, with the family's keys, and where its weights come from."""

    family: str = Field(default="kimi", description="the model family: kimi, package.module:Class, or an entry point")
    init: Path | None = Field(
        default=None,
        description="start from this Hugging Face checkpoint or policy, with its shape and tokenizer",
    )

    @property
    def shape(self) -> Any:
        """The shape alone, as stored with a policy's weights."""
        own: Any = FAMILIES.resolve(self.family)
        return own.Shape(**{name: getattr(self, name) for name in own.Shape.model_fields})

    def __reduce__(self) -> Any:  # its class is created again by the reader
        return _policy, (self.family, self.model_dump())


@lru_cache
def policy_section(family: str) -> type[PolicyFields]:
    """The class of ``model`` for a family by name: its shape's keys, ``family`` and ``init``."""
    own: Any = FAMILIES.resolve(family)
    field: Any = (str, Field(default=family, description=PolicyFields.model_fields["family"].description))
    made = create_model("PolicyConfig", __base__=(PolicyFields, own.Shape), __doc__=PolicyFields.__doc__, family=field)
    made.optional = (*own.Shape.optional, "init", "family") if family == "kimi" else (*own.Shape.optional, "init")
    return made


def _policy(family: str, values: dict[str, Any]) -> PolicyFields:
    return policy_section(family).model_validate(values)


class EnvsFields(_Section):
    """Source of tasks and tools."""

    name: str = Field(default="world", description="the environment: world, package.module:Class, or an entry point")
    config: SerializeAsAny[Section] = Field(
        default=Section(), validate_default=True, description="the environment's own section"
    )
    tasks: str | None = Field(
        default=None,
        description="own tasks: .jsonl, .json, .csv, .tsv, .parquet, a datasets hub id, or package.module:function;"
        " None = the environment's",
    )

    def build(self) -> Environment:
        """The environment; cheap, since it is built on first use."""
        return ENVIRONMENTS.resolve(self.name)(self.config)


class EnvsConfig(EnvsFields):
    """Source of tasks and tools. A section given as a mapping is read as its environment's."""

    @field_validator("config", mode="before")
    @classmethod
    def _own_section(cls, given: Any, info: ValidationInfo) -> Any:
        if "name" not in info.data:
            return given
        kind: Any = ENVIRONMENTS.resolve(info.data["name"])
        if isinstance(given, kind.Config):
            return given
        return kind.Config.model_validate({} if type(given) is Section else given)


class TokenizerConfig(_Section):
    """The BPE vocabulary trained on the world's text."""

    vocab_size: int = Field(default=1152, gt=300, description="byte alphabet + merges + special tokens")


TEACHER = "teacher"  # sft.data: the demonstrations of the environment's teacher


class SftConfig(_Section):
    """The cold start: imitation of demonstrations. Keys without effect from scratch are left out of dumps."""

    optional: ClassVar[tuple[str, ...]] = ("data", "best", "lora", "enough", "check_tokens", "check_tasks")

    seed: int = Field(default=1, ge=0)
    data: str | None = Field(
        default=None,
        description="over `model.init`, what to imitate first: `teacher` (the environment's), a file of"
        " conversations, or a folder of recorded episodes; null = nothing",
    )
    best: int | None = Field(
        default=None,
        gt=0,
        description="of each task's recorded episodes in `data` so many: right, with the fewest critical steps",
    )
    tokens: int = Field(default=6_000_000, gt=0, description="training tokens, drills included")
    copying_tokens: int = Field(default=160_000, ge=0, description="of these, copying drills: repeated random text")
    drill_tokens: int = Field(default=800_000, ge=0, description="of these, reading and agenda drills")
    batch_tokens: int = Field(default=4096, gt=0, description="tokens of one optimiser step")
    lr: float = Field(default=3e-3, gt=0, description="AdamW: embeddings, norms, router")
    muon_lr: float | None = Field(default=6e-3, gt=0, description="Muon: matrices; null: AdamW for them, too")
    lora: LoraConfig | None = Field(default=None, description="over `model.init`, train adapters and merge them then")
    parallel: float = Field(default=0.3, ge=0, le=1, description="share of demonstrations that spawn where it pays")
    wrong: float = Field(default=0.15, ge=0, le=1, description="share of demonstrations that spawn where it does not")
    observation_weight: float = Field(
        default=0.5, ge=0, description="loss weight of tokens that the agent did not write"
    )
    enough: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="over `model.init`, end at this mean score of free episodes on val; null = train all tokens",
    )
    check_tokens: int = Field(
        default=100_000, gt=0, description="over `model.init`, tokens between two checks, from which a kill goes on"
    )
    check_tasks: int = Field(default=32, gt=0, description="tasks of val that a check asks")

    @model_serializer(mode="wrap")
    def _brief(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in handler(self).items()
            if name not in self.optional or getattr(self, name) != fields[name].default
        }


class TrainerConfig(_Section):
    """The training loop."""

    steps: int = Field(default=50, gt=0)
    epochs: int = Field(default=1, gt=0, description="passes over each step's rows")
    minibatches: int = Field(default=2, gt=0, description="optimiser steps of one pass")
    micro_tokens: int = Field(
        default=8192, gt=0, description="tokens of one forward pass: whole packed rows, or one longer row"
    )
    ranks: int = Field(default=2, gt=0, description="learner processes, which split the rows")
    threads: int = Field(default=1, gt=0, description="CPU threads of each rank")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="where ranks compute; auto: on a GPU each if the cluster has any"
    )
    parallel: ParallelConfig = NOT_PARALLEL
    checkpoint_every: int = Field(default=1, gt=0, description="steps between checkpoints")
    keep_checkpoints: int = Field(default=2, gt=0)
    keep_best: str | None = Field(
        default="reward/perf",
        description="also keep the checkpoint with the highest of this metric; null: only the newest",
    )
    staleness: int = Field(
        default=0,
        ge=0,
        description="maximum age of a trained token in policy versions; 0 = collect, then learn",
    )
    overlap: bool = Field(
        default=True,
        description="with a staleness, collect while learning; False = halt unfinished episodes meanwhile",
    )
    step_s: float = Field(default=900.0, gt=0, description="deadline of one step; a slower one ends the run")
    most_unread: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="a run whose first step has a larger share of turns that cannot be read is stopped; 1 = never",
    )


class EvalConfig(_Section):
    """Held-out evaluation."""

    tasks: int = Field(default=160, gt=0, description="held-out tasks, one episode each")
    split: Literal["val", "test"] = "test"
    temperature: float = Field(default=1.0, ge=0, description="0 = greedy")
    top_p: float = Field(
        default=0.95,
        gt=0,
        le=1,
        description="orchestrators' top-p; K2.5 is evaluated with 0.95",
    )
    seed: int = Field(default=7, ge=0)


class TrackingConfig(_Section):
    """Trackers besides metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        default="auto", description="auto = online with a key, else offline"
    )
    project: str = "parl"
    tensorboard: bool = Field(default=False, description="also event files in RUN/tensorboard")
    prometheus_port: int | None = Field(
        default=None, gt=0, lt=65536, description="also the newest numbers, at 127.0.0.1:PORT/metrics"
    )


_DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_PARTS = {
    "cold_start",
    "single_agent",
    "policy",
    "policy_best",
    "checkpoints",
    "episodes",
    "eval",
    "evals",
    "subagents",
}


class ConfigFields(_Section):
    """One run. The loader (``plugin_sections.py``) replaces sections that a name chooses."""

    name: str = Field(
        default="run", pattern=r"^[A-Za-z0-9._-]+$", max_length=200, description="the run's folder is runs/NAME"
    )
    root: Path = Field(default=Path("runs"), description="folder of all runs")
    mirror: str | None = Field(
        default=None,
        description="fsspec address, e.g. s3://bucket/runs: the run's folder is copied there; --resume fetches it",
    )
    seed: int = Field(default=1, ge=0)
    baseline: bool = Field(default=False, description="also train and evaluate the single agent")
    starter: Path | None = Field(default=None, description="shipped cold-start weights, used when their hash matches")
    model: SerializeAsAny[PolicyFields] = Field(default_factory=lambda: _policy("kimi", {}))
    tokenizer: TokenizerConfig = TokenizerConfig()
    envs: EnvsFields = EnvsFields()
    sft: SftConfig = SftConfig()
    rollouts: RolloutsConfig = RolloutsConfig()
    rewards: SerializeAsAny[Reward] = Parl()
    objective: SerializeAsAny[Objective] = K25()
    optimizer: OptimizerConfig = OptimizerConfig()
    trainer: TrainerConfig = TrainerConfig()
    eval: EvalConfig = EvalConfig()
    cluster: ClusterConfig = ClusterConfig()
    tracking: TrackingConfig = TrackingConfig()

    _folder: Path | None = PrivateAttr(default=None)  # of a run that was moved or renamed

    @field_validator("mirror")
    @classmethod
    def _check_mirror(cls, mirror: str | None) -> str | None:
        if mirror is not None:
            check_place(mirror, store=True)
        return mirror

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        """The name must be a valid, unreserved folder name on all systems."""
        if name.startswith((".", "-")) or name.endswith("."):
            raise ValueError(f"{name!r} must begin with a letter, a digit or _, and not end with a dot")
        if name.casefold().split(".")[0] in _DEVICES:
            raise ValueError(f"{name!r} is a device's name on some systems: take another")
        if name.casefold() in _PARTS:
            raise ValueError(f"{name!r} is what a folder of parl's own is called: take another")
        return name

    @model_validator(mode="after")
    def _check(self) -> ConfigFields:
        if self.model.init is None and self.tokenizer.vocab_size > self.model.vocab_size:
            raise ValueError(
                f"tokenizer.vocab_size={self.tokenizer.vocab_size} exceeds model.vocab_size={self.model.vocab_size}"
            )
        pictures = self.envs.config.pictures
        if pictures and self.model.pictures is None:
            raise ValueError("envs.config asks for pictures, which a policy without model.vision cannot see")
        if self.rollouts.context.policy != "none":
            if pictures:
                raise ValueError("rollouts.context.policy cannot manage contexts with pictures: set it to none")
            if self.objective.whole_traces:
                raise ValueError(
                    f"objective.name={self.objective.name} weighs whole traces, which rollouts.context.policy cuts:"
                    " take k25 or cispo, or set the policy to none"
                )
        check_engine_fits(self.rollouts, model=self.model, staleness=self.trainer.staleness)
        self._check_stream()
        check_parallel(self.trainer.ranks, self.trainer.parallel, self.model, self.optimizer)
        self._check_sft()
        return self

    def _check_sft(self) -> None:
        """Check settings of imitation, from scratch or over given weights."""
        sft = self.sft
        if self.model.init is None:
            drills = sft.copying_tokens + sft.drill_tokens
            if drills >= sft.tokens:
                raise ValueError(
                    f"sft.copying_tokens + sft.drill_tokens = {drills} leave nothing of sft.tokens={sft.tokens}"
                    " for demonstrations: lower them or raise sft.tokens"
                )
            if given := [name for name in ("data", "lora", "enough") if getattr(sft, name) is not None]:
                raise ValueError(
                    f"sft.{given[0]}={getattr(sft, given[0])} is for a cold start over given weights: name them with"
                    " model.init, or leave the key out"
                )
        elif sft.data is None and (given := [name for name in ("lora", "enough") if getattr(sft, name) is not None]):
            without = " and ".join(f"sft.{name}=null" for name in given)
            raise ValueError(
                f"sft.{given[0]}={getattr(sft, given[0])} needs something to imitate: set sft.data to teacher or a"
                f" file, or, to do without a cold start, {without}"
            )

        parallel = self.trainer.parallel
        if sft.lora is not None and (parallel.zero == 3 or parallel.expert_parallel > 1):
            raise ValueError(
                f"sft.lora with trainer.parallel.zero={parallel.zero}, expert_parallel={parallel.expert_parallel}:"
                " every rank must hold the weights under the adapters whole; use zero=2 and expert_parallel=1, or"
                " leave sft.lora out"
            )

    def _check_stream(self) -> None:
        """Check what cannot be combined with a staleness."""
        if not self.trainer.staleness:
            return
        rollouts = self.rollouts
        bad = {
            "rollouts.placement=spread": rollouts.placement == "spread",
            "rollouts.rebalance=true": rollouts.rebalance,
            f"rollouts.dynamic_sampling={rollouts.dynamic_sampling}": rollouts.dynamic_sampling is not None,
            f"rollouts.subagent_pool={rollouts.subagent_pool}": rollouts.subagent_pool == "refreshed",
        }
        if wrong := [name for name, given in bad.items() if given]:
            raise ValueError(f"{wrong[0]} conflicts with trainer.staleness={self.trainer.staleness}: leave one out")

    def in_folder(self, folder: Path, *, keep_root: bool = False) -> Self:
        """The same for a run that is now in ``folder``; ``keep_root``: cold starts stay below ``root``."""
        root = self.root if keep_root or (self.root / "cold_start").is_dir() else folder.parent
        moved = self.model_copy(update={"root": root})
        moved._folder = None if moved.run_dir == folder else folder
        return moved

    @property
    def run_dir(self) -> Path:
        """The run's folder; another seed gets its own."""
        return self._folder or self.root / (self.name if self.seed == 1 else f"{self.name}-seed{self.seed}")


class Config(ConfigFields):
    """One run."""

    envs: EnvsConfig = EnvsConfig()

    @field_validator("model", mode="before")
    @classmethod
    def _chosen_family(cls, given: Any) -> Any:
        return _policy(given.get("family", "kimi"), given) if isinstance(given, dict) else given

    @field_validator("objective", mode="before")
    @classmethod
    def _chosen_objective(cls, given: Any) -> Any:
        return _chosen(OBJECTIVES, given, "k25")

    @field_validator("rewards", mode="before")
    @classmethod
    def _chosen_reward(cls, given: Any) -> Any:
        return _chosen(REWARDS, given, "parl")


def _chosen(kind: Kind, given: Any, default: str) -> Any:
    """A mapping as the section of the class chosen by ``name``."""
    if not isinstance(given, dict):
        return given
    found: Any = kind.resolve(given.get("name", default))
    return found.model_validate(given)
