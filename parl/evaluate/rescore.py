"""``parl rescore``: stored episodes under any reward and schedule, without a model.

An episode of training step s is scored with the weights of that step; one of an evaluation with λ = 0.
Critical steps and all other numbers are computed from the stored traces again. With the run's own
configuration the result is bit-equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parl.config.runs import configuration
from parl.config.schema import Config
from parl.episodes.stores import find_stores, readable
from parl.errors import UserError
from parl.evaluate.scoring import scoring_for
from parl.shown.terminal import cell, console
from rewards.base import TOTAL, Weights
from rollouts.store.outline import Outline


@dataclass(slots=True, kw_only=True)
class Rescored:
    """One episode before and after."""

    store: str
    outline: Outline
    weights: Weights
    stored: dict[str, float]  # stored rewards
    rewards: dict[str, float]
    metrics: dict[str, Any]

    @property
    def same(self) -> bool:
        """Whether every part and the total are bit-equal to the stored ones."""
        return self.stored == self.rewards

    def row(self) -> dict[str, Any]:
        """All of it as one flat JSON object."""
        outline, episode = self.outline, self.outline.episode
        return {
            "store": self.store,
            "ref": outline.ref,
            "kind": outline.kind,
            "step": outline.step,
            "policy_version": outline.policy_version,
            "task": episode.task.key,
            "family": episode.task.family,
            "width": episode.task.width,
            "index": episode.index,
            "seed": episode.seed,
            "status": str(episode.status),
            "limit": episode.limit,
            **{f"reward/{name}": value for name, value in self.rewards.items()},
            **{f"stored/{name}": value for name, value in self.stored.items()},
            **{f"lambda/{name}": value for name, value in self.weights.items()},
            "same": self.same,
            **{name: self.metrics.get(name) for name in _METRICS},
        }


_METRICS = (
    *("item_f1", "row_f1", "values_f1", "success", "critical_steps", "total_steps", "tool_calls", "subagents"),
    *("path_tokens", "total_tokens", "makespan_s", "makespan_capped_s", "finish_rate"),
    *("tokens_orchestrator", "tokens_subagent", "useless_spawn"),
)


def rewards_config(given: Path, path: Path | None, overrides: list[str] | None) -> Config | None:
    """The configuration of ``--rewards``, or the run's own, with overrides; None: the run's rewards."""
    if path is None and overrides:
        run = find_stores(given)[0].run
        if run is None:
            raise UserError(
                f"{given} belongs to no run (no config.yaml above it): name a configuration, --rewards CONFIG"
            )
        path = run / "config.yaml"
    return configuration(path, overrides, files=False) if path else None


def rescore(given: Path, rewards: Config | None = None, *, kind: str | None = None) -> Iterator[Rescored]:
    """Score every stored episode of ``given`` again; UserError names a mistake or damage."""
    for store in find_stores(given):
        scoring = scoring_for(store, rewards)
        with readable():
            for outline in store.outlines(texts=scoring.reward.texts, kind=kind):
                stored = outline.episode.rewards
                weights = scoring.score(outline, single_agent=store.single_agent)
                episode = outline.episode
                yield Rescored(
                    store=store.name,
                    outline=outline,
                    weights=weights,
                    stored=stored,
                    rewards=episode.rewards,
                    metrics=episode.metrics,
                )


@dataclass(slots=True)
class _Sums:
    """Running sums of a group of episodes."""

    count: int = 0
    changed: int = 0
    old: float = 0.0
    scored: int = 0  # episodes with stored rewards
    new: dict[str, float] = field(default_factory=dict)
    critical_steps: int = 0

    def add(self, result: Rescored) -> None:
        self.count += 1
        self.changed += not result.same
        if "total" in result.stored:
            self.scored += 1
            self.old += result.stored["total"]
        for part, value in result.rewards.items():
            self.new[part] = self.new.get(part, 0.0) + value
        self.critical_steps += result.metrics["critical_steps"]


def print_summary(results: Iterator[Rescored]) -> None:
    """Print a table: stored and new reward by store, kind and family."""
    from rich.table import Table

    groups: dict[tuple[str, str], dict[str, _Sums]] = {}
    for result in results:
        families = groups.setdefault((result.store, result.outline.kind), {})
        for family in (result.outline.episode.task.family, "all"):
            families.setdefault(family, _Sums()).add(result)
    if not groups:
        raise UserError("no episode there: is --kind right?")
    table = Table(title="means of stored episodes", title_style="bold")
    parts = [part for part in _parts(groups) if part != TOTAL]
    for name in ("store", "tasks", "episodes", "stored", "new", *parts, "critical steps", "changed"):
        text = name in ("store", "tasks")
        table.add_column(name, justify="left" if text else "right", no_wrap=text)
    for (store, kind), families in groups.items():
        label = f"{store} {kind}"
        for family in sorted(families, key=lambda name: (name == "all", name)):
            table.add_row(cell(label), cell(family.replace("_", " ")), *_cells(families[family], parts))
            label = ""
        table.add_section()
    out = console()
    out.print(table)
    whole = [families["all"] for families in groups.values()]
    changed, count = sum(sums.changed for sums in whole), sum(sums.count for sums in whole)
    verdict = f"{changed} with other rewards than stored" if changed else "all rewards are the stored ones, bit by bit"
    out.print(f"{count} episodes: {verdict}", highlight=False)


def _parts(groups: dict[tuple[str, str], dict[str, _Sums]]) -> list[str]:
    """The names of all parts, in order of first occurrence."""
    return list(dict.fromkeys(part for families in groups.values() for sums in families.values() for part in sums.new))


def _cells(sums: _Sums, parts: list[str]) -> list[str]:
    old = f"{sums.old / sums.scored:.4f}" if sums.scored else "-"
    means = [f"{sums.new.get(part, 0.0) / sums.count:.4f}" for part in (TOTAL, *parts)]
    return [str(sums.count), old, *means, f"{sums.critical_steps / sums.count:.2f}", str(sums.changed)]
