"""The contract of a policy objective: one class with its section, its loss and its statistics. No torch.

An objective is a class derived from :class:`Objective` with a ``loss``, named by
``objective.name: package.module:Class``. Its fields are the section's keys, so a setting without effect is
refused when the file is read. Import torch inside ``loss``. Equations: docs/objectives.md; example:
examples/objective.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import Tensor

Stats = dict[str, "Tensor"]


class Objective(BaseModel):
    """Common to all policy objectives. ``loss.policy_loss`` adds the reference policy and the correction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="the algorithm: a built-in, package.module:Class, or an installed entry point")
    kl: float = Field(default=0.0, ge=0, description="weight of the KL divergence from the cold start (k3); 0 = off")
    ptx: float = Field(
        default=0.0, ge=0, description="weight of imitating demonstrations in every optimiser step; 0 = off"
    )

    credit: Literal["episode", "agent"] = Field(
        default="episode",
        description="advantage of co-trained sub-agents: their episode's, or by their own outcome",
    )
    counterfactual: float = Field(
        default=0.0,
        ge=0,
        description="weight of an episode's credit against those of its group that decided otherwise: to spawn, or not"
        " to; 0 = off",
    )

    def loss(
        self, logprobs_new: Tensor, logprobs_old: Tensor, advantages: Tensor, mask: Tensor, *, denominator: float
    ) -> tuple[Tensor, Stats]:
        """The scalar loss over the tokens where ``mask`` is True, and detached means over them.

        All tensors have one shape: [B, T] with a whole trace per row if ``whole_traces``; else any. Positions
        outside ``mask`` may hold anything and must get no gradient. ``denominator``: the number of trained
        tokens of the whole step, over all micro-batches and ranks. The means are named by ``statistics``,
        plus ``tokens``, the number of trained tokens here, which weighs averages over batches (see
        ``common.statistics``).
        """
        raise NotImplementedError(f"{type(self).__name__} has no loss")

    def weights(self, proximal: Tensor, sampler: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """With ``corrects``: a factor >= 0 of each token's advantage, and the share that a limit changed."""
        raise NotImplementedError(f"{type(self).__name__} corrects, but has no weights")

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of the means that ``loss`` returns besides ``tokens``."""
        return ("ratio", "masked", "kl")

    @property
    def normalises(self) -> bool:
        """Whether advantages are divided by the standard deviation of their group's rewards."""
        return False

    @property
    def corrects(self) -> bool:
        """Whether tokens are weighed by learner against engine, which needs the learner's own log-probs."""
        return False

    @property
    def whole_traces(self) -> bool:
        """Whether the loss needs whole traces as rows."""
        return False


class Normalised(Objective):
    """An objective with optional division of advantages by their group's standard deviation."""

    normalise_std: bool = Field(
        default=True, description="divide advantages by the standard deviation of their group's rewards"
    )

    @property
    def normalises(self) -> bool:
        """See ``Objective``."""
        return self.normalise_std


def check_objective(kind: type) -> None:
    """ValueError unless ``kind`` is an objective with a loss."""
    if not issubclass(kind, Objective):
        raise ValueError("it must derive from parl.learn.objective.base.Objective")
    if kind.loss is Objective.loss:
        raise ValueError("it must have a method loss(logprobs_new, logprobs_old, advantages, mask, *, denominator)")
