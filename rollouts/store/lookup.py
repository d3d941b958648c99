"""Single episodes and columns of stored shards, without decoding the rest; damage is reported.

:func:`rollouts.store.store.read_shard` decodes a whole shard with all routes. To choose among thousands of
episodes, read their plain columns here, then the chosen few.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from envs.base import Task
from rollouts.episode import Episode
from rollouts.store.store import SHARD_NAME, episode_of, named, open_shard, read_rows


def shards(folder: str | Path) -> list[tuple[str, int, Path]]:
    """(kind, step, file) of all shards in ``folder``, by kind and step; empty if there is no such folder."""
    folder = Path(folder)
    names = [(SHARD_NAME.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ())]
    return sorted((name[1], int(name[2]), path) for name, path in names if name)


def read_columns(path: str | Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Some columns of all episodes of a shard, without tokens; ``rewards`` and ``metrics`` as dictionaries."""
    with open_shard(path) as (file, _):
        rows = list(read_rows(path, file, columns))
    for number, row in enumerate(rows):
        for name in {"rewards", "metrics"} & row.keys():
            with named(path, f"episode {number} is damaged: its {name}"):
                row[name] = json.loads(row[name])
    return rows


def read_episodes(path: str | Path, numbers: Sequence[int]) -> list[Episode]:
    """The episodes with these row numbers of a shard, in this order; only their row groups are read."""
    wanted = set(numbers)
    found: dict[int, Episode] = {}
    tasks: dict[str, Task] = {}
    first = 0
    with open_shard(path) as (file, _):
        for group in range(file.metadata.num_row_groups):
            rows = range(first, first + file.metadata.row_group(group).num_rows)
            first = rows.stop
            if inside := sorted(wanted.intersection(rows)):
                for number, row in zip(rows, read_rows(path, file, groups=[group]), strict=True):
                    if number not in inside:
                        continue
                    with named(path, f"episode {number} ({row['task_key']}#{row['index']}) is damaged"):
                        found[number] = episode_of(row, tasks)
    return [found[number] for number in numbers]
