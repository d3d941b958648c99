"""How results are grouped: what the environment says, as a run wrote it down or as its configuration has it."""

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

KEY = "groups"  # where a summary keeps them


def task_groups(envs: EnvsFields) -> tuple[TaskGroup, ...]:
    """The groups of the environment that is named, in its order."""
    return tuple(getattr(ENVIRONMENTS.resolve(envs.name), "groups", ()))


def kept_groups(groups: Iterable[TaskGroup]) -> list[dict[str, Any]]:
    """Groups as a summary keeps them, for who reads it without the environment."""
    return [asdict(group) for group in groups]


def run_groups(run: Path | None, summary: dict[str, Any] | None = None) -> tuple[TaskGroup, ...]:
    """The groups of a run: those that its summary keeps, else those of its environment; none where neither is there."""
    kept = (summary or {}).get(KEY)
    if isinstance(kept, list):
        try:
            return tuple(TaskGroup(**one) for one in kept)
        except TypeError:  # another version's
            return ()
    if run is None or not (run / CONFIG).is_file():
        return ()
    try:
        return task_groups(run_config(run).envs)
    except UserError:  # its environment is not installed here, or the file is damaged: names alone will do
        return ()


def families(groups: Sequence[TaskGroup]) -> list[str]:
    """The families that groups name, each once, in their order."""
    return list(dict.fromkeys(group.family for group in groups if group.family is not None))
