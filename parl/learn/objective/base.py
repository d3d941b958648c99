"""Settings of the policy objectives: one section an algorithm, chosen by ``objective.name``. No torch.

A section has the keys of its own algorithm only, so a setting that would do nothing is refused when the file is read.
docs/objectives.md has the equations.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

_PUBLISHED = {"tis": (0.0, 2.0), "mis": (0.0, 2.0), "icepop": (0.5, 5.0)}


class Objective(BaseModel):
    """What all policy objectives have."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kl: float = Field(default=0.0, ge=0, description="weight of the KL divergence from the cold start (k3); 0 = off")
    ptx: float = Field(
        default=0.0, ge=0, description="weight of imitating demonstrations in every optimiser step; 0 = off"
    )

    credit: Literal["episode", "agent"] = Field(
        default="episode",
        description="advantage of co-trained sub-agents: their episode's, or by their own outcome",
    )

    @property
    def normalises(self) -> bool:
        """Whether advantages are divided by the standard deviation of their group's rewards."""
        return bool(getattr(self, "normalise_std", False))

    @property
    def corrects(self) -> bool:
        """Whether tokens are weighed by learner against engine, which takes the learner's own log-probs first."""
        return getattr(self, "correction", "none") != "none"

    @property
    def whole_traces(self) -> bool:
        """Whether the loss is a function of whole traces, which then must not be cut in several rows."""
        return self.name == "gspo" or getattr(self, "correction", "none") == "mis"


class ObjectiveConfig(Objective):
    """K2.5's policy objective (report Eq. 1)."""

    name: Literal["k25"] = Field(default="k25", description="the algorithm")
    log_ratio_min: float = Field(default=-0.5, lt=0, description="α: tokens with a smaller log-ratio get no gradient")
    log_ratio_max: float = Field(default=0.5, gt=0, description="β: tokens with a larger log-ratio get no gradient")
    tau: float = Field(default=0.01, ge=0, description="weight of the squared log-ratio")


class _Normalised(Objective):
    normalise_std: bool = Field(
        default=True, description="divide advantages by the standard deviation of their group's rewards"
    )


class _Corrected(_Normalised):
    correction: Literal["none", "tis", "mis", "icepop"] = Field(
        default="none", description="weight of learner against engine: truncated, masked by trace, masked by token"
    )
    correction_limits: tuple[float, float] | None = Field(
        default=None,
        description="smallest and largest such weight; null = as published: tis and mis [0, 2], icepop [0.5, 5]",
    )

    @model_validator(mode="after")
    def _check(self):
        if self.correction_limits is None:
            return self
        low, high = self.correction_limits
        shown = f"correction_limits=[{low:g}, {high:g}]"
        if self.correction == "none":
            raise ValueError(f"{shown} does nothing with correction=none: choose tis, mis or icepop, or remove it")
        if not 0 <= low <= 1 <= high:
            raise ValueError(f"{shown} must hold the weight 1 of an exact engine: 0 <= smallest <= 1 <= largest")
        if self.correction != "icepop" and low > 0:
            raise ValueError(f"{shown}: correction={self.correction} has no smallest weight; write 0, or use icepop")
        return self

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest weight of the chosen correction."""
        return self.correction_limits or _PUBLISHED[self.correction]


class GrpoConfig(_Corrected):
    """Group relative policy optimisation, with DAPO's two clips. PPO's clipped ratio, token by token."""

    name: Literal["grpo"] = Field(default="grpo", description="the algorithm")
    clip_low: float = Field(default=0.2, gt=0, lt=1, description="ε: a ratio below 1 - ε gains nothing by falling")
    clip_high: float = Field(default=0.2, gt=0, description="ε of the other side; DAPO's clip-higher is 0.28")


class GspoConfig(_Normalised):
    """Group sequence policy optimisation. One ratio a trace, the geometric mean of its tokens'."""

    name: Literal["gspo"] = Field(default="gspo", description="the algorithm")
    clip_low: float = Field(default=3e-4, gt=0, lt=1, description="ε: a ratio below 1 - ε gains nothing by falling")
    clip_high: float = Field(default=4e-4, gt=0, description="ε of the other side")


class CispoConfig(_Corrected):
    """Clipped importance-sampling weights. REINFORCE whose weight, not whose gradient, is limited."""

    name: Literal["cispo"] = Field(default="cispo", description="the algorithm")
    clip_low: float = Field(default=1.0, ge=0, le=1, description="weights are at least 1 - ε; 1 = no lower limit")
    clip_high: float = Field(default=4.0, gt=0, description="weights are at most 1 + ε")


OBJECTIVES: dict[str, type[Objective]] = {
    "k25": ObjectiveConfig,
    "grpo": GrpoConfig,
    "gspo": GspoConfig,
    "cispo": CispoConfig,
}


def objective_name(value: Any) -> str | None:
    """``name`` of a section as read or as built; k25 where it has none."""
    return value.get("name", "k25") if isinstance(value, dict) else getattr(value, "name", "k25")


AnyObjective = Annotated[
    Annotated[ObjectiveConfig, Tag("k25")]
    | Annotated[GrpoConfig, Tag("grpo")]
    | Annotated[GspoConfig, Tag("gspo")]
    | Annotated[CispoConfig, Tag("cispo")],
    Discriminator(objective_name),
]
