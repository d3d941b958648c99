"""The PARL reward, ``rewards.name: parl``: pure functions of an ``Episode``.

Kimi K2.5 report, Agent Swarm:  r = λ1 · r_parallel + λ2 · r_finish + r_perf, with λ1, λ2 annealed to 0. The
report gives the terms but not their formulas; these are ours (docs/reward.md has the reasons):

    perf      score of the episode, or of its answer (exact match, or the F1 over the cells of a table that are not in
              the question; 0 unless it ended ANSWERED)
    parallel  min(sub-agents that count, cap, parts of the task) / cap, in [0, 1]: against serial collapse
    finish    sub-agents that count / sub-agents launched, in [0, 1]: against spurious parallelism
    critical  min(cost / reference, 2), in [0, 2]: enters the total with a minus sign; 0 without a reference

Which sub-agents count: ``rewards.valid``. ``finish`` is 0 if nothing was launched: not spawning never earns more
than spawning. The cost of ``critical`` is that of ``rewards.critical``: critical steps (K2.5), sampled tokens on the
longest path, or modelled seconds (``rollouts.costs``). The reference of steps is the oracle's serial cost; without an
oracle the critical steps of the group's shortest solved episode, or else the episode's critical-step budget. That of
tokens and seconds is the group's cheapest solved episode, or else ``rewards.critical_budget``. An episode without an
answer, or with one of the lowest score, pays the full 2: otherwise giving up at once, or writing anything at all, would
be cheaper than trying.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from pydantic import Field

from envs.base import Score, Task
from rewards.base import PERF, Parts, Reward, Weights
from rewards.outcome import FOUND
from rewards.schedule import annealed
from rewards.schedule.saturation import SHARE, Saturation
from rewards.toggle import Toggle
from rewards.valid import Rule, counts
from rollouts.costs import LatencyModel, modelled_makespan, path_tokens
from rollouts.critical_path import critical_steps
from rollouts.episode import Episode, EpisodeStatus, TraceStatus

CRITICAL_MAX = 2.0
SHORTEST = "shortest_success"  # metric: critical steps of the group's shortest solved episode (rewards.group)
CHEAPEST = {"tokens": "cheapest_success_tokens", "seconds": "cheapest_success_s"}  # metrics: the same in other costs
_DEAREST = {"tokens": "dearest_tokens", "seconds": "dearest_s"}  # metrics: of the group's dearest episode
Unit = Literal["steps", "tokens", "seconds"]


class Parl(Reward):
    """r = perf + λ1 parallel + λ2 finish - μ critical."""

    texts: ClassVar[bool] = True  # which sub-agents count depends on what they said

    name: str = Field(default="parl", description="the reward")
    lambda_parallel: float = Field(default=0.3, ge=0, description="λ1 at the start")
    lambda_finish: float = Field(default=0.1, ge=0, description="λ2 at the start")
    schedule: Literal["linear", "cosine", "constant", "saturation"] = Field(
        default="linear",
        description="how λ1 and λ2 fall; saturation: when their terms have nothing left to teach; constant: they do"
        " not, for ablations",
    )
    saturation: Saturation = Saturation()
    form: Literal["additive", "convex"] = Field(
        default="additive",
        description="additive = the report's; convex = the blog's, λ1 · parallel + (1 − λ1) · success · quality",
    )
    anneal: float = Field(default=0.5, gt=0, le=1, description="share of the steps after which λ1 = λ2 = 0")
    parallel_cap: int = Field(default=16, gt=0, description="sub-agents at which r_parallel reaches 1")
    validity: Rule = Field(
        default="needed",
        description="which sub-agents count (docs/reward.md): news = those that returned something that the"
        " orchestrator did not have, needed = these, and none where they do not pay by the oracle, tool = OpenPARL's"
        " rule, any = all",
    )
    cells: Literal["found", "all"] = Field(
        default="found",
        description="table cells that are paid for: found = those that are not in the question, all = the item-F1",
    )
    critical: Unit = Field(
        default="steps",
        description="what the penalty prices: critical steps, sampled tokens on the longest path, or seconds"
        " under rewards.latency",
    )
    critical_reference: Literal["group", "budget"] = Field(
        default="group",
        description="what the cost is compared with (steps: only without an oracle): the group's cheapest solved"
        " episode, if any, or always the budget",
    )
    critical_budget: float | None = Field(
        default=None,
        gt=0,
        description="tokens or seconds that count 1 where no episode of the group solved the task; null = those of its"
        " dearest episode",
    )
    toggle: Toggle = Toggle()
    critical_failed: Literal["full", "cost"] = Field(
        default="full", description="what an answer of the lowest score pays: full = as no answer, or its cost"
    )
    critical_penalty: float = Field(default=0.25, ge=0, description="μ, constant; 0 switches the term off")

    def parts(self, episode: Episode, score: Score | None) -> Parts:
        """See the module docstring for the formulas."""
        paid = score.parts[FOUND] if score and self.cells == "found" and FOUND in score.parts else None
        launched = len(episode.subagents)
        valid, finished = counts(episode, self.validity)
        plain = self.validity in ("any", "tool")
        cap = self.parallel_cap if plain else min(self.parallel_cap, parts_of(episode.task))
        junk = score is not None and (score.value if paid is None else paid) <= score.low
        wasted = episode.status is not EpisodeStatus.ANSWERED or (junk and self.critical_failed == "full")
        value = (0.0 if score is None else score.value) if paid is None else paid
        return {
            **({} if paid is None else {PERF: paid}),
            **({"solved": value * bool(score and score.solved)} if self.form == "convex" else {}),
            **({"over": value * self.toggle.exceeded(episode)} if self.toggle.every else {}),
            "parallel": min(valid, cap) / self.parallel_cap,
            "finish": finished / launched if launched else 0.0,
            "critical": self._critical(episode, wasted),
        }

    def _critical(self, episode: Episode, wasted: bool) -> float:
        """min(cost / reference, 2), 2 if ``wasted``; 0 without a reference, but for ``wasted`` in tokens or seconds."""
        group, noted = self.critical_reference == "group", episode.metrics
        if self.critical == "steps":
            oracle, shortest = episode.task.oracle, noted.get(SHORTEST, 0) if group else 0
            reference = oracle.serial_steps if oracle else shortest or episode.critical_budget
        else:
            solved = noted.get(CHEAPEST[self.critical], 0.0) if group else 0.0
            reference = solved or self.critical_budget or noted.get(_DEAREST[self.critical], 0.0)
        if wasted and (reference > 0 or self.critical != "steps"):
            return CRITICAL_MAX
        if reference <= 0:
            return 0.0
        return min(cost_of(episode, self.critical, self.latency) / reference, CRITICAL_MAX)

    def noted(self, group: Sequence[Episode], solved: Sequence[Episode]) -> Mapping[str, float]:
        """Toggle's budget; tokens or seconds of the group's cheapest solved and of its dearest episode, if priced."""
        facts = dict(self.toggle.noted(group, solved))
        if self.critical == "steps":
            return facts
        facts |= {_DEAREST[self.critical]: max(cost_of(one, self.critical, self.latency) for one in group)}
        if solved:
            facts[CHEAPEST[self.critical]] = min(cost_of(one, self.critical, self.latency) for one in solved)
        return facts

    def weights(self, step: int, steps: int) -> Weights:
        """λ1 and λ2 fall to 0 and stay there in an evaluation; μ stays. Toggle's weight is 1 in budgeted phases."""
        starts = (self.lambda_parallel, self.lambda_finish)
        if self.schedule == "saturation":  # of a run that never saturates
            bound = self.saturation.bound(self.anneal, step, steps)
            parallel, finish = (start * bound for start in starts)
        else:
            parallel, finish = (annealed(start, self.anneal, step, steps, self.schedule) for start in starts)
        weights = {"parallel": parallel, "finish": finish, "critical": self.critical_penalty}
        if self.form == "convex":
            weights |= {PERF: 0.0, "solved": 1 - parallel}
        return weights | ({"over": self.toggle.weight(step)} if self.toggle.every else {})

    def observed(self, seen: Mapping[str, float], episodes: Sequence[Episode], step: int, steps: int) -> Weights:
        """See ``rewards.schedule.saturation``; empty with the other schedules and for a single agent."""
        if self.schedule != "saturation" or not (self.lambda_parallel or self.lambda_finish):
            return {}
        return self.saturation.observed(seen, episodes, self.anneal, step, steps)

    def weights_after(self, seen: Mapping[str, float], step: int, steps: int) -> Weights:
        """Those of :meth:`weights`; with ``saturation`` λ1 and λ2 have at most the share in ``seen``."""
        weights = self.weights(step, steps)
        if self.schedule != "saturation":
            return weights
        share = min(seen.get(SHARE, 1.0), self.saturation.bound(self.anneal, step, steps))
        weights |= {"parallel": self.lambda_parallel * share, "finish": self.lambda_finish * share}
        return weights | ({"solved": 1 - weights["parallel"]} if self.form == "convex" else {})

    def told(self, seen: Mapping[str, float]) -> Mapping[str, float]:
        """The share that saturation has left of λ's start."""
        return {SHARE: seen[SHARE]} if SHARE in seen else {}

    def shown(self, seen: Mapping[str, float]) -> dict[str, float]:
        """What saturation is judged by."""
        return self.saturation.shown(seen) if seen else {}

    def held_out(self) -> Weights:
        """An evaluation pays for answers and their cost alone."""
        weights = self.weights(1, 1) | {"parallel": 0.0, "finish": 0.0}
        weights |= {"solved": 1.0} if self.form == "convex" else {}
        return weights | ({"over": 0.0} if self.toggle.every else {})

    def weighted(self, parts: Parts, weights: Weights) -> Parts:
        """The report's additive form, with our latency term."""
        signed = {name: -weight if name in ("critical", "over") else weight for name, weight in weights.items()}
        return super().weighted(parts, signed)

    def total(self, parts: Parts, weights: Weights) -> float:
        """perf + λ1 · parallel + λ2 · finish − μ · critical, added in this order."""
        if self.form == "convex" or self.toggle.every:
            return super().total(parts, weights)
        bonus = weights["parallel"] * parts["parallel"] + weights["finish"] * parts["finish"]
        return parts.get("perf", 0.0) + bonus - weights["critical"] * parts["critical"]

    def alone(self) -> Self:
        """λ1 = λ2 = 0."""
        return self.model_copy(update={"lambda_parallel": 0.0, "lambda_finish": 0.0})


def finish_rate(episode: Episode) -> float | None:
    """Sub-agents that returned a valid message / sub-agents launched; None if none was launched."""
    launched = episode.subagents
    finished = sum(trace.status is TraceStatus.FINISHED for trace in launched)
    return finished / len(launched) if launched else None


def parts_of(task: Task) -> float:
    """The independent parts of a task: more sub-agents than that are not paid for. Infinite where unknown."""
    if task.gold.kind == "table":
        return max(task.width, len(task.gold.rows))
    return task.width if task.oracle else float("inf")


def cost_of(episode: Episode, unit: Unit, latency: LatencyModel) -> float:
    """The episode's cost in critical steps, path tokens, or seconds under ``latency``."""
    if unit == "seconds":
        return modelled_makespan(episode, latency)
    return critical_steps(episode) if unit == "steps" else path_tokens(episode)
