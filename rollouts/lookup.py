"""Single episodes and single columns of stored shards, without decoding the rest; what is damaged is named.

:func:`rollouts.store.read_shard` decodes a whole shard with all its routes. Whoever wants to choose among thousands of
episodes reads their plain columns here, and then the few that were chosen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from envs.base import Task
from rollouts.episode import Episode
from rollouts.store import SHARD_NAME, StoreError, episode_of, open_shard


def shards(folder: str | Path) -> list[tuple[str, int, Path]]:
    """(kind, step, file) of all shards in ``folder``, by kind and step; empty where there is no such folder."""
    folder = Path(folder)
    names = [(SHARD_NAME.fullmatch(path.name), path) for path in (folder.iterdir() if folder.is_dir() else ())]
    return sorted((name[1], int(name[2]), path) for name, path in names if name)


def read_columns(path: str | Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """A few columns of all episodes of a shard, without their tokens; ``rewards`` and ``metrics`` as dictionaries."""
    with open_shard(path) as (file, _), _named(path, "not a readable Parquet shard"):
        rows = file.read(columns=list(columns)).to_pylist()
    for number, row in enumerate(rows):
        for name in {"rewards", "metrics"} & row.keys():
            with _named(path, f"episode {number} is damaged: its {name}"):
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
                with _named(path, f"episodes {rows.start} to {rows.stop - 1} cannot be read"):
                    table = file.read_row_group(group)
                for number in inside:
                    with _named(path, f"episode {number} is damaged"):
                        row = table.slice(number - rows.start, 1).to_pylist()[0]
                    with _named(path, f"episode {number} ({row['task_key']}#{row['index']}) is damaged"):
                        found[number] = episode_of(row, tasks)
    return [found[number] for number in numbers]


@contextmanager
def _named(path: str | Path, what: str) -> Iterator[None]:
    """Whatever a damaged file raises, as a :class:`StoreError` that says where."""
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{path}: {what} ({type(error).__name__}: {error})") from error
