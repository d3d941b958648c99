"""The file of a sweep: which runs, what they differ in, and how they are compared. No torch.

Overrides are dotted keys of a run's configuration; their values are kept as the text that the file has, as in
``parl train CONFIG KEY=VALUE``.
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from parl.config import yaml_text
from parl.config.mistakes import show
from parl.errors import UserError
from parl.presets import preset

TRAINED = "trained"
POLICIES = (TRAINED, "cold_start", "cold_start_no_spawn")
Overrides = dict[str, str]  # dotted key -> value, as text
_OWN = {
    "name": "the sweep names its runs",
    "root": "set it in the base configuration",
    "baseline": "give the single agent an arm of its own",
    "eval.split": "set it in `evaluate`",
    "eval.tasks": "set it in `evaluate`",
    "eval.seed": "set it in `evaluate`",
}
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_-]*$"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Group(_Section):
    """Tasks that are shown together: of ``families`` (empty: any), with ``least_width`` to ``most_width`` parts."""

    families: tuple[str, ...] = ()
    least_width: int = Field(default=0, ge=0)
    most_width: int | None = Field(default=None, gt=0)

    def holds(self, family: str, width: int) -> bool:
        """Whether a task of this family and width belongs to the group."""
        wide = self.least_width <= width and (self.most_width is None or width <= self.most_width)
        return wide and (not self.families or family in self.families)


class Evaluate(_Section):
    """The evaluation of every run. ``tasks``, ``seed``: by default the base configuration's."""

    split: Literal["val", "test"] = "test"
    tasks: int | None = Field(default=None, gt=0)
    seed: int | None = Field(default=None, ge=0)
    attempts: int = Field(default=1, gt=0)
    groups: dict[str, Group] = {}


class Choose(_Section):
    """What is chosen on val before anything is evaluated.

    ``grid``: of these values each of ``arms`` (empty: all that train) takes the best in its first run; of equals the
    smallest. ``metric``: ``reward`` or a metric of episodes, the higher the better, over ``tasks`` tasks.
    ``checkpoint``: each run is evaluated with its best kept checkpoint; of equals the last.
    """

    grid: dict[str, list[str]] = {}
    arms: tuple[str, ...] = ()
    metric: str = "reward"
    tasks: int = Field(default=64, gt=0)
    checkpoint: bool = False


class Arm(_Section):
    """One variant: its overrides, and which policy of its runs is evaluated."""

    policy: Literal["trained", "cold_start", "cold_start_no_spawn"] = TRAINED
    overrides: Overrides = {}


class Sweep(_Section):
    """A sweep: ``arms`` at every point of ``grid``. ``reference``: the arm that others are compared with."""

    name: str = Field(pattern=_NAME, max_length=100)
    base: Path
    set: Overrides = {}
    grid: dict[str, list[str]] = {}
    arms: dict[str, Arm] = Field(min_length=1)
    reference: str = ""
    evaluate: Evaluate = Evaluate()
    choose: Choose | None = None

    @field_validator("grid")
    @classmethod
    def _distinct(cls, grid: dict[str, list[str]]) -> dict[str, list[str]]:
        for key, values in grid.items():
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{key} needs at least one value, and each once, not {values}")
        return grid

    @model_validator(mode="after")
    def _check(self) -> Sweep:
        if wrong := [name for name in self.arms if not re.fullmatch(_NAME, name)]:
            raise ValueError(f"an arm's name is made of letters, digits, - and _, not {wrong[0]!r}")
        if self.reference and self.reference not in self.arms:
            raise ValueError(f"reference = {self.reference} is no arm; there are: {', '.join(self.arms)}")
        chosen = self.choose or Choose()
        for name in chosen.arms:
            if name not in self.arms or self.arms[name].policy != TRAINED:
                raise ValueError(f"choose.arms: {name} is no arm that trains")
        keys = [*self.set, *self.grid, *chosen.grid, *(key for arm in self.arms.values() for key in arm.overrides)]
        for key in keys:
            if key in _OWN:
                raise ValueError(f"{key} cannot be set in a sweep: {_OWN[key]}")
        for key in chosen.grid:
            if key in self.grid:
                raise ValueError(f"{key} is in the grid and in choose.grid: take it out of one of them")
        return self

    @property
    def first(self) -> str:
        """The arm that others are compared with."""
        return self.reference or next(iter(self.arms))

    def tuned(self, arm: str) -> bool:
        """Whether values of ``choose.grid`` are chosen for ``arm``."""
        own = self.arms.get(arm)  # None: cold starts alone
        if self.choose is None or not self.choose.grid or own is None or own.policy != TRAINED:
            return False
        return not self.choose.arms or arm in self.choose.arms


def read_sweep(path: Path) -> Sweep:
    """The sweep in the YAML file ``path``, or in the preset of that name; UserError with all mistakes."""
    path = preset(path)
    if not path.is_file():
        raise UserError(f"no sweep's file {path}: it is a YAML file with name, base and arms (docs/sweeps.md)")
    try:
        text = path.read_text(encoding="utf-8")
        tree, words = yaml_text.parse(text), yaml_text.words(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a sweep is a mapping with name, base and arms, this is {show(tree)}")
    try:
        sweep = Sweep.model_validate(_with_texts(tree, words))
    except ValidationError as error:
        lines = [_explained(dict(detail)) for detail in error.errors()]
        raise UserError(f"{path}: " + "\n  - ".join(lines if len(lines) == 1 else ["", *lines])) from None
    beside = path.parent / sweep.base
    return sweep.model_copy(update={"base": beside}) if beside.is_file() else sweep


def _with_texts(tree: dict[str, Any], words: dict[str, Any]) -> dict[str, Any]:
    """``tree`` with the values of overrides as text, and arms in the form of :class:`Arm`."""
    made = dict(tree)
    if isinstance(common := tree.get("set"), dict):
        made["set"] = _texts(common, _below(words, "set"))
    if isinstance(grid := tree.get("grid"), dict):
        made["grid"] = _lists(grid, _below(words, "grid"))
    if isinstance(choose := tree.get("choose"), dict) and isinstance(grid := choose.get("grid"), dict):
        made["choose"] = choose | {"grid": _lists(grid, _below(words, "choose", "grid"))}
    if isinstance(arms := tree.get("arms"), dict):
        made["arms"] = {
            name: _arm(given or {}, _below(words, "arms", name)) if isinstance(given, dict | None) else given
            for name, given in arms.items()
        }
    return made


def _below(words: Any, *keys: str) -> dict[str, Any]:
    for key in keys:
        words = words.get(key) if isinstance(words, dict) else None
    return words if isinstance(words, dict) else {}


def _arm(given: dict[str, Any], words: dict[str, Any]) -> dict[str, Any]:
    overrides = {key: value for key, value in given.items() if key != "policy"}
    own = {"policy": given["policy"]} if "policy" in given else {}
    return own | {"overrides": _texts(overrides, words)}


def _texts(tree: dict[str, Any], words: dict[str, Any]) -> dict[str, str]:
    return {key: _text(value, words.get(key)) for key, value in tree.items()}


def _lists(tree: dict[str, Any], words: dict[str, Any]) -> dict[str, Any]:
    return {
        key: [_text(value, word) for value, word in zip(values, _listed(words.get(key), len(values)), strict=True)]
        if isinstance(values, list)
        else values
        for key, values in tree.items()
    }


def _listed(words: Any, count: int) -> list[Any]:
    return words if isinstance(words, list) and len(words) == count else [None] * count


def _text(value: Any, word: Any) -> str:
    """A value as it is written in KEY=VALUE."""
    if value is None:
        return "null"
    return word if isinstance(word, str) else value if isinstance(value, str) else json.dumps(value)


def _explained(detail: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = {name for kind in (Sweep, Evaluate, Choose, Group) for name in kind.model_fields}
        close = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        return f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "")
    if detail["type"] == "missing":
        return f"{key} is missing"
    text = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
    return text if detail["type"] == "value_error" else f"{key} = {show(detail['input'])}: {text}"
