"""The cells of a sweep: one run each, with its resolved configuration, in ``ROOT/SWEEP/CELL``. No torch.

A *trial* is a run whose value of ``choose.grid`` may be chosen for its arm; it is judged on val. The chosen trial is
the first cell of its arm, so it is not trained again. Cold starts are cells of their own, made first, since other
cells share them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parl.cold_start.shipped import WEIGHTS, Recipe, cold_start_folder, cold_start_hash, shipped
from parl.config.load import config_hash, load_config
from parl.config.mistakes import leaves
from parl.config.schema import Config
from parl.errors import ConfigError, UserError
from parl.evaluate.identity import description, identity
from parl.sweep.file import TRAINED, Choose, Overrides, Sweep

COLD = "cold start"
_SAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_BESIDES = (
    "root",
    "starter",
    "tracking",
    "trainer.ranks",
    "trainer.threads",
    "trainer.step_s",
    "rollouts.workers",
    "rollouts.concurrency",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One run and its evaluation.

    ``at``: its point of the grid. ``policy``: which of the run's policies is evaluated, or ``COLD`` for a cold start
    alone. ``trial``: judge it on val only. ``config`` knows the run's folder.
    """

    id: str
    arm: str
    at: Overrides
    policy: str
    overrides: Overrides  # of the base configuration, all of them
    config: Config
    cold: str  # hash of its cold start
    attempts: int = 1
    trial: bool = False
    judged: str = ""  # by what its checkpoint, or it itself as a trial, is judged

    @property
    def trains(self) -> bool:
        """Whether it has a policy of its own to train."""
        return self.policy == TRAINED

    @property
    def key(self) -> str:
        """Changes when its results may, as far as settings say."""
        tree = dict(leaves(self.config.model_dump(mode="json", exclude_defaults=True)))  # new keys of the code are none
        kept = {key: value for key, value in tree.items() if not key.startswith(_BESIDES)}
        values = [*(f"{k}={v}" for k, v in kept.items()), *filter(None, [self.judged])]
        return config_hash(self.cold, self.policy, self.attempts, self.trial, *values)


def points(grid: Mapping[str, Sequence[str]]) -> list[Overrides]:
    """All combinations of the grid's values, the last key fastest; one empty point for an empty grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def trials(sweep: Sweep) -> list[Cell]:
    """The runs among which ``choose.grid`` is chosen: each tuned arm at the grid's first point."""
    choose = sweep.choose or Choose()
    tuned = [arm for arm in sweep.arms if sweep.tuned(arm)]
    first = points(sweep.grid)[0]
    return [_cell(sweep, arm, first, value, trial=True) for arm in tuned for value in points(choose.grid)]


def cells(sweep: Sweep, chosen: Mapping[str, Overrides]) -> list[Cell]:
    """The cells of every arm in the file's order. ``chosen``: by arm, of tuned arms; else the base's values are shown.

    An arm that does not train has one cell for each point that matters to it. UserError names a cell whose
    configuration is wrong.
    """
    found: list[Cell] = []
    for arm in sweep.arms:
        own = [_cell(sweep, arm, at, chosen.get(arm, {})) for at in points(sweep.grid)]
        found += own if sweep.arms[arm].policy == TRAINED else _distinct(own)
    ids = [cell.id for cell in found]
    if twice := [one for one in ids if ids.count(one) > 1]:
        raise UserError(
            f"two cells would be called {twice[0]}: their values differ only in signs that names cannot have"
        )
    return found


def cold_starts(needed: Sequence[Cell]) -> list[Cell]:
    """The cold starts of ``needed`` that are neither cached nor shipped, each once."""
    first: dict[str, Cell] = {}
    for cell in needed:
        recipe = Recipe.of(cell.config)
        imitates = recipe.model.init is None or recipe.sft.data is not None
        if imitates and not shipped(recipe) and not (cold_start_folder(recipe) / WEIGHTS).exists():
            first.setdefault(cell.cold, cell)
    return [
        replace(cell, id=f"cold-start-{key}", arm=COLD, at={}, policy=COLD, trial=False, judged="")
        for key, cell in first.items()
    ]


def folder_of(sweep: Sweep) -> Path:
    """The sweep's folder: ``ROOT/NAME`` of the base configuration."""
    return load_config(sweep.base, _texts(sweep.set)).root / sweep.name


def _cell(sweep: Sweep, arm: str, at: Overrides, tuned: Overrides, *, trial: bool = False) -> Cell:
    choose, own = sweep.choose or Choose(), sweep.arms[arm]
    first = at == points(sweep.grid)[0]
    run = _name(arm, {**at, **tuned} if first else at)
    evaluation = {"eval.split": "val" if trial else sweep.evaluate.split}
    wanted = {"eval.tasks": choose.tasks if trial else sweep.evaluate.tasks, "eval.seed": sweep.evaluate.seed}
    evaluation |= {key: str(value) for key, value in wanted.items() if value is not None}
    overrides = sweep.set | own.overrides | at | tuned | {"baseline": "false"} | evaluation
    overrides |= {"name": f"{sweep.name}-{run}"}
    try:
        config = load_config(sweep.base, _texts(overrides))
    except ConfigError as error:
        raise ConfigError(f"sweep {sweep.name}, arm {arm}: {error}") from None
    return Cell(
        id=f"trial-{run}" if trial else _name(arm, at),
        arm=arm,
        at=at,
        policy=own.policy,
        overrides=overrides,
        config=config.in_folder(config.root / sweep.name / run, keep_root=True),
        cold=cold_start_hash(Recipe.of(config)),
        attempts=1 if trial else sweep.evaluate.attempts,
        trial=trial,
        judged=f"{choose.metric} of {choose.tasks}" if trial or (own.policy == TRAINED and choose.checkpoint) else "",
    )


def _name(arm: str, at: Overrides) -> str:
    """A folder's name for an arm's run at a point of the grid."""
    return _SAFE.sub("_", "".join([arm, *(f"-{key}{value}" for key, value in at.items())])).rstrip(".")


def _texts(overrides: Overrides) -> list[str]:
    return [f"{key}={value}" for key, value in overrides.items()]


def _distinct(own: list[Cell]) -> list[Cell]:
    """One cell for each point that makes other episodes, without the keys that make none."""

    def episodes(cell: Cell) -> str:
        swarm = cell.config.rollouts.swarm and not cell.policy.endswith("no_spawn")
        return identity(description(cell.config, {"policy": cell.cold}, spawning=swarm, chat=False))

    made = [(cell, episodes(cell)) for cell in own]
    idle = []
    for key in own[0].at:
        by_rest: dict[tuple[str, ...], set[str]] = {}
        for cell, digest in made:
            rest = tuple(value for name, value in cell.at.items() if name != key)
            by_rest.setdefault(rest, set()).add(digest)
        idle += [key] * all(len(digests) == 1 for digests in by_rest.values())
    left: dict[tuple[str, ...], Cell] = {}
    for cell, _ in made:
        at = {key: value for key, value in cell.at.items() if key not in idle}
        left.setdefault(tuple(at.values()), _at(cell, at))
    return list(left.values())


def _at(cell: Cell, at: Overrides) -> Cell:
    name = _name(cell.arm, at)
    renamed = cell.config.model_copy(update={"name": f"{cell.config.run_dir.parent.name}-{name}"})
    config = renamed.in_folder(cell.config.run_dir.with_name(name), keep_root=True)
    return replace(cell, id=name, at=at, config=config, overrides=cell.overrides | {"name": config.name})


def differences(some: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """By cell, the resolved values of the keys in which the cells differ, and of the overrides' keys."""
    trees = {cell.id: dict(leaves(cell.config.model_dump(mode="json"))) for cell in some}
    every = dict.fromkeys(key for tree in trees.values() for key in tree)
    shown = [key for key in every if len({str(tree.get(key)) for tree in trees.values()}) > 1 and key != "name"]
    return {name: {key: tree.get(key) for key in shown} for name, tree in trees.items()}
