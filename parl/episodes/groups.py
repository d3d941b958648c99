"""How results are grouped: from a run's summary or its environment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.base import TaskGroup
from parl.config.plugin_kinds import ENVIRONMENTS
from parl.config.runs import CONFIG, run_config
from parl.config.schema import EnvsFields
from parl.errors import UserError

KEY = "groups"  # their key in a summary


def task_groups(envs: EnvsFields) -> tuple[TaskGroup, ...]:
    """The groups of the configured environment, in order."""
    return tuple(getattr(ENVIRONMENTS.resolve(envs.name), "groups", ()))


def kept_groups(groups: Iterable[TaskGroup]) -> list[dict[str, Any]]:
    """Groups for a summary, for readers without the environment."""
    return [asdict(group) for group in groups]


def run_groups(run: Path | None, summary: dict[str, Any] | None = None) -> tuple[TaskGroup, ...]:
    """The groups of a run, from its summary, else from its environment; none if both are missing."""
    kept = (summary or {}).get(KEY)
    if isinstance(kept, list):
        try:
            return tuple(TaskGroup(**one) for one in kept)
        except TypeError:  # of another version
            return ()
    if run is None or not (run / CONFIG).is_file():
        return ()
    try:
        return task_groups(run_config(run).envs)
    except UserError:  # the environment is not installed here, or the file is damaged: use names alone
        return ()


def families(groups: Sequence[TaskGroup]) -> list[str]:
    """The distinct families of groups, in order."""
    return list(dict.fromkeys(group.family for group in groups if group.family is not None))
