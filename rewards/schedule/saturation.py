"""``saturation``: λ stays at its start until training shows that its terms have nothing left to teach, then falls.

After each step three numbers are taken over the tasks where sub-agents shorten the path (:func:`pays`), of ``families``
where these are given, each as a moving average over about ``window`` steps, m ← m + (x − m) / window:

    spawn of a family   the share of its episodes that spawned; the family that spawns least counts
    finish              r_finish of the episodes that spawned
    variance            of r_parallel within a group: what the advantage of that term is made of

The step is saturated if there were at least ``window`` steps, both rates are at least ``enough``, and the variance is
at most ``variance``. Variance alone would not do: a policy that never spawns has none. Each saturated step takes
1 / (fall · steps) off the share that λ1 and λ2 have of their starts:

    share ← share − [saturated] / (fall · steps)        λ(step) = start · min(share, bound(step))

It never rises again. The bound falls from 1 to 0 in the last fall · steps steps before ``rewards.anneal`` · steps, or
before the last step, so that a run that never saturates ends with λ = 0 too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, pvariance

from pydantic import BaseModel, ConfigDict, Field

from envs.base import Task
from rollouts.episode import Episode

SHARE = "lambda_share"  # in a run's state, and a metric of its episodes: the share of λ's start, before the bound
_STEPS, _FINISH, _VARIANCE, _SPAWN = "steps", "finish", "variance", "spawn/"  # the rest of the state
_NOTHING = 1e-9  # what differences of shares leave of one
Seen = Mapping[str, float]


class Saturation(BaseModel):
    """When the terms of λ1 and λ2 count as learned, and how fast they fall then."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enough: float = Field(
        default=0.8,
        gt=0,
        le=1,
        description="spawn rate of every family where sub-agents pay, and r_finish, from which on nothing is missing",
    )
    variance: float = Field(
        default=0.01, ge=0, description="variance of r_parallel within groups, up to which nothing is left to learn"
    )
    window: int = Field(default=5, gt=0, description="steps of the moving averages")
    fall: float = Field(default=0.1, gt=0, le=1, description="saturated steps until λ is 0, as a share of all steps")
    families: tuple[str, ...] = Field(
        default=(),
        description="families that are measured: those where sub-agents win, also against many direct calls in a turn;"
        " empty = all where they pay by the oracle",
    )

    def bound(self, anneal: float, step: int, steps: int) -> float:
        """The most that the share may be in ``step`` (from 0); 0 from min(anneal · steps, steps − 1) on."""
        end = min(anneal * steps, steps - 1)
        return max(0.0, min(1.0, (end - step) / self._fall(anneal, steps))) if step < end else 0.0

    def observed(
        self, seen: Seen, episodes: Sequence[Episode], anneal: float, step: int, steps: int
    ) -> dict[str, float]:
        """The state after ``step`` and its scored ``episodes``, from that before it (empty at the start)."""
        found = dict(seen) | {_STEPS: seen.get(_STEPS, 0) + 1}
        for name, value in self._measured(episodes).items():
            before = seen.get(name, value)
            found[name] = before + (value - before) / self.window
        share = min(seen.get(SHARE, 1.0), self.bound(anneal, step, steps))
        if self.saturated(found):
            share -= 1 / self._fall(anneal, steps)
            share = share if share > _NOTHING else 0.0
        return found | {SHARE: share}

    def saturated(self, seen: Seen) -> bool:
        """Whether the terms have nothing left to teach."""
        spawn = [value for name, value in seen.items() if name.startswith(_SPAWN)]
        rates = [*spawn, seen.get(_FINISH, 0.0)]
        learned = bool(spawn) and min(rates) >= self.enough and seen[_VARIANCE] <= self.variance
        return learned and seen[_STEPS] >= self.window

    def shown(self, seen: Seen) -> dict[str, float]:
        """The tracked metrics of a state; what was never measured is left out."""
        spawn = [value for name, value in seen.items() if name.startswith(_SPAWN)]
        out = {"saturation/share": seen[SHARE]} | ({"saturation/spawn_rate": min(spawn)} if spawn else {})
        return out | {f"saturation/{name}": seen[name] for name in (_FINISH, _VARIANCE) if name in seen}

    def _measured(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """One step's numbers; what no episode shows is left out."""
        groups: dict[str, list[Episode]] = defaultdict(list)
        families: dict[str, list[Episode]] = defaultdict(list)
        for episode in episodes:
            task = episode.task
            if not episode.void and pays(task) and (not self.families or task.family in self.families):
                groups[task.key].append(episode)
                families[task.family].append(episode)
        finish = [one.rewards["finish"] for group in groups.values() for one in group if one.subagents]
        spread = [pvariance([one.rewards["parallel"] for one in group]) for group in groups.values()]
        out = {_SPAWN + name: fmean(bool(one.subagents) for one in own) for name, own in families.items()}
        out |= {_VARIANCE: fmean(spread)} if spread else {}
        return out | ({_FINISH: fmean(finish)} if finish else {})

    def _fall(self, anneal: float, steps: int) -> float:
        return max(1.0, min(self.fall * steps, anneal * steps, steps - 1))


def pays(task: Task) -> bool:
    """Whether sub-agents shorten the path: by the oracle, or else by having several parts, or nobody knows how many."""
    if task.oracle is not None:
        return task.oracle.width > 0
    return task.gold.kind != "table" or max(task.width, len(task.gold.rows)) > 1
