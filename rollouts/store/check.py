"""Validates a shard before and while it is read: claims, unpacked size, and that its agents form a tree.

A file from elsewhere may claim a billion rows, unpack to gigabytes, or hold an agent that launched itself.
ValueError says what is wrong; :mod:`rollouts.store.store` adds the file's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rollouts.episode import Trace

MOST_EPISODES = 1_000_000
_BATCH = 16  # episodes unpacked at a time
_RATIO, _FLOOR, _MOST = 200, 2**28, 2**34  # bytes that a byte of the file may unpack to; always allowed; upper bound
_AGENTS, _DEPTH = 100_000, 64


def allowed_bytes(size: int) -> int:
    """Bytes that a shard of ``size`` bytes may unpack to."""
    return min(_FLOOR + _RATIO * size, _MOST)


def check_claims(file: pq.ParquetFile, size: int, wanted: pa.Schema, optional: Sequence[str] = ()) -> None:
    """Check the columns and the sizes in the file's metadata; older files lack the ``optional`` ones."""
    found = file.schema_arrow
    for field in wanted:
        place = found.get_field_index(field.name)
        if place < 0 and field.name in optional:
            continue
        if place < 0:
            raise ValueError(f"it lacks the column {field.name!r}")
        if found.field(place).type != field.type:
            raise ValueError(f"the column {field.name!r} holds {found.field(place).type}, not {field.type}")
    meta = file.metadata
    if not 0 <= meta.num_rows <= MOST_EPISODES:
        raise ValueError(f"it claims {meta.num_rows:,} episodes; a shard has at most {MOST_EPISODES:,}")
    unpacked = sum(meta.row_group(number).total_byte_size for number in range(meta.num_row_groups))
    if unpacked > allowed_bytes(size):
        raise ValueError(f"its {size:,} bytes claim to unpack to {unpacked:,}")


def batches(
    file: pq.ParquetFile, size: int, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Some columns, a few episodes at a time; ValueError if ``size`` bytes unpack to too much."""
    held, most = 0, allowed_bytes(size)
    options: dict[str, Any] = {} if groups is None else {"row_groups": list(groups)}
    named = None if columns is None else list(columns)
    for batch in file.iter_batches(_BATCH, columns=named, use_threads=False, **options):
        held += batch.nbytes
        if held > most:
            raise ValueError(f"its {size:,} bytes unpack to more than {most:,}")
        yield batch


def check_lengths(traces: Sequence[Mapping[str, Any]], arrays: Mapping[str, np.ndarray]) -> None:
    """Every array must have the total length of the traces."""
    for name, array in arrays.items():
        if name == "routes":
            shapes = [trace["routes"] for trace in traces if trace["routes"] is not None]
            if not all(isinstance(shape, list) and len(shape) == 3 and all(map(_size, shape)) for shape in shapes):
                raise ValueError("a shape of routes is not three sizes")
            total = sum(tokens * layers * experts for tokens, layers, experts in shapes)
        else:
            sizes = [trace["length"][name] for trace in traces]
            if not all(map(_size, sizes)):
                raise ValueError(f"a length of {name} is no size")
            total = sum(sizes)
        if total != len(array):
            raise ValueError(f"the traces have {total} {name}, the column holds {len(array)}")


def _size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40


def check_agents(traces: Sequence[Trace], *, whole: bool = True) -> None:
    """One orchestrator; distinct agents, each launched by an existing one, not by itself.

    ``whole``: launched agents must exist too, as needed to count steps.
    """
    by_id = {trace.agent_id: trace for trace in traces}
    if not traces or len(traces) > _AGENTS:
        raise ValueError(f"it has {len(traces)} agents")
    if len(by_id) != len(traces):
        raise ValueError("two of its agents have one id")
    if traces[0].parent is not None:
        raise ValueError(f"its first agent {traces[0].agent_id!r:.80} was launched by another: that is no orchestrator")
    for trace in traces:
        above, steps = trace, 0
        while above.parent is not None:
            if above.parent not in by_id:
                raise ValueError(
                    f"agent {above.agent_id!r:.80} was launched by {above.parent!r:.80}, which is not there"
                )
            above, steps = by_id[above.parent], steps + 1
            if steps > _DEPTH:
                raise ValueError(f"agent {trace.agent_id!r:.80} is launched more than {_DEPTH} deep, or by itself")
    _check_launches(traces[0], by_id, whole)


def _check_launches(root: Trace, by_id: Mapping[str, Trace], whole: bool) -> None:
    """What turns launched exists, without cycles."""
    open_, visits = [(root, 0)], 0
    while open_:
        trace, depth = open_.pop()
        visits += 1
        if depth > _DEPTH or visits > 2 * len(by_id) + 16:
            raise ValueError(f"agent {trace.agent_id!r:.80} is launched again and again, or more than {_DEPTH} deep")
        for child in (child for turn in trace.turns for child in turn.spawned):
            if child in by_id:
                open_.append((by_id[child], depth + 1))
            elif whole:
                raise ValueError(f"agent {trace.agent_id!r:.80} launched {child!r:.80}, which is not there")
