"""The durable episode store: one Parquet shard per training step, written atomically.

A shard is ``KIND-STEP.parquet`` (``train-000012.parquet``), one row per episode, readable by any Parquet tool
and by ``datasets.load_dataset("parquet", data_files=...)``. Columns to filter by are plain (``task_key``,
``family``, ``index``, ``status``, ``answer``, ``policy_version``, ...); ``task``, ``traces``, ``rewards`` and
``metrics`` are JSON, as is ``score``, null for an episode without one. Token arrays of an episode's traces are
concatenated in binary columns, little endian: ``tokens`` int32, ``mask`` uint8, ``logprobs`` float32,
``versions`` int32, ``routes`` int16 [tokens, L, K] (traces with routes only). Each trace in ``traces`` gives
the lengths of its arrays and the shape of its routes.

Pictures are base64 in the tool results; ``media_at`` of a trace holds their positions. Log-probs are rounded
to float32.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from envs.base import ErrorKind, Role, Score, Task, ToolCall, ToolResult
from model.files import replacing, sync
from rollouts.episode import Episode, EpisodeStatus, Trace, TraceStatus, Turn
from rollouts.store.check import batches, check_agents, check_claims, check_lengths

SCHEMA_VERSION = 1

_ARRAYS = {"tokens": "<i4", "mask": "<u1", "logprobs": "<f4", "versions": "<i4"}
_PLAIN = ("index", "seed", "answer", "limit", "error", "critical_budget", "wall_s")
SHARD_NAME = re.compile(r"([a-z][a-z_]*)-(\d{6,})\.parquet")  # kind, step
_ROW_GROUP = 128  # episodes
_TRACE_PLAIN = ("agent_id", "name", "parent", "parent_turn", "prompt", "message", "trainable")
_TRACE_SELDOM = ("media_at", "limit", "cuts")  # left out if empty
_TURN_PLAIN = tuple(f.name for f in fields(Turn) if f.name not in ("calls", "results", "deadline"))

_SCHEMA = pa.schema(
    [
        ("task_key", pa.string()),
        ("family", pa.string()),
        ("split", pa.string()),
        ("index", pa.int64()),
        ("seed", pa.int64()),
        ("status", pa.string()),
        ("answer", pa.string()),
        ("limit", pa.string()),
        ("error", pa.string()),
        ("critical_budget", pa.int64()),
        ("wall_s", pa.float64()),
        ("step", pa.int64()),
        ("policy_version", pa.int64()),
        ("task", pa.string()),
        ("traces", pa.large_string()),
        ("rewards", pa.string()),
        ("metrics", pa.string()),
        ("score", pa.string()),
        *((name, pa.large_binary()) for name in (*_ARRAYS, "routes")),
    ]
)


class StoreError(RuntimeError):
    """A shard that cannot be read: the text names the file and the damage."""


class EpisodeStore:
    """Episodes by (kind, step) in ``folder``; a shard exists completely or not at all, also after a kill."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, step: int, kind: str = "train") -> Path:
        """The path of the shard of ``step``, existing or not."""
        name = f"{kind}-{step:06d}.parquet"
        if step < 0 or not SHARD_NAME.fullmatch(name):
            raise ValueError(f"no shard can be named kind={kind!r}, step={step}: kind is a lower-case word, step >= 0")
        return self.folder / name

    def write(self, step: int, episodes: Sequence[Episode], *, policy_version: int, kind: str = "train") -> Path:
        """Store ``episodes`` as the shard of ``step``, replacing an earlier one; on disk on return."""
        path = self.path(step, kind)
        rows = [{**_episode_row(e), "step": step, "policy_version": policy_version} for e in episodes]
        meta = {"parl_schema": SCHEMA_VERSION, "kind": kind, "step": step, "policy_version": policy_version}
        schema = _SCHEMA.with_metadata({key: str(value) for key, value in meta.items()})
        table = pa.Table.from_pylist(rows, schema=schema)
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd", row_group_size=_ROW_GROUP, write_page_checksum=True)
        return path

    def read(self, step: int, kind: str = "train") -> tuple[list[Episode], int] | None:
        """(episodes, policy version) of ``step`` as written; None without a shard."""
        path = self.path(step, kind)
        return read_shard(path) if path.exists() else None

    def steps(self, kind: str = "train") -> list[int]:
        """Steps with a shard, ascending."""
        names = [SHARD_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted(int(name[2]) for name in names if name and name[1] == kind)

    def discard_after(self, step: int, kind: str = "train") -> list[int]:
        """Delete the shards of all steps after ``step`` (for a resumed run); returns them."""
        gone = [later for later in self.steps(kind) if later > step]
        for later in gone:
            self.path(later, kind).unlink()
        if gone:
            sync(self.folder)
        return gone


def read_shard(path: str | Path) -> tuple[list[Episode], int]:
    """(episodes, policy version) of one shard file; :class:`StoreError` if it is not one."""
    with open_shard(path) as (file, meta):
        tasks: dict[str, Task] = {}  # the episodes of a group share their task
        episodes: list[Episode] = []
        for row in read_rows(path, file):
            with named(path, f"episode {len(episodes)} ({row['task_key']}#{row['index']}) is damaged"):
                episodes.append(episode_of(row, tasks))
    return episodes, int(meta["policy_version"])


def read_rows(
    path: str | Path, file: pq.ParquetFile, columns: Sequence[str] | None = None, groups: Sequence[int] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of an open shard, a few in memory at a time. StoreError if damaged or too large unpacked."""
    try:
        for batch in batches(file, Path(path).stat().st_size, columns, groups):
            yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: {where_damaged(file)} ({error})") from error
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from error


@contextmanager
def named(path: str | Path, what: str) -> Iterator[None]:
    """Turn errors of a damaged file into :class:`StoreError` with its path."""
    try:
        yield
    except (OSError, pa.ArrowException, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{path}: {what} ({type(error).__name__}: {error})") from error
    except (RecursionError, IndexError, OverflowError) as error:
        raise StoreError(f"{path}: {what} ({type(error).__name__})") from error


@contextmanager
def open_shard(path: str | Path) -> Iterator[tuple[pq.ParquetFile, dict[str, str]]]:
    """A shard's open file and metadata (``kind``, ``step``, ``policy_version``), before any row is read.

    Raises :class:`StoreError` if it is missing, truncated, not Parquet, not ours or of another schema
    version.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        size = f"{Path(path).stat().st_size} bytes" if Path(path).exists() else "no such file"
        raise StoreError(f"{path}: not a readable Parquet shard ({size}: {error})") from error
    with file:
        given = file.metadata.metadata or {}
        meta = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in given.items()}
        version = meta.get("parl_schema")
        if version != str(SCHEMA_VERSION):
            found = f"has schema version {version}" if version else "was not written by parl"
            raise StoreError(f"{path}: {found}; this parl reads schema version {SCHEMA_VERSION}")
        for name in ("step", "policy_version"):
            if not re.fullmatch(r"-?\d{1,18}", meta.get(name, "")):
                raise StoreError(f"{path}: its metadata gives {name} = {meta.get(name)!r:.80}, no whole number")
        if not re.fullmatch(r"[a-z][a-z_]*", meta.get("kind", "")):
            raise StoreError(f"{path}: its metadata gives kind = {meta.get('kind')!r:.80}, no lower-case word")
        try:
            check_claims(file, Path(path).stat().st_size, _SCHEMA, optional=("score",))
        except ValueError as error:
            raise StoreError(f"{path}: {error}") from error
        yield file, meta


def where_damaged(file: pq.ParquetFile) -> str:
    """The episodes, column and bytes of the first column chunk that does not decode."""
    first = 0
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        for index in range(group.num_columns):
            chunk = group.column(index)
            try:
                file.read_row_group(number, columns=[chunk.path_in_schema])
            except (OSError, pa.ArrowException):
                offset = chunk.dictionary_page_offset or chunk.data_page_offset
                span = f"bytes {offset} to {offset + chunk.total_compressed_size}"
                episodes = f"episodes {first} to {first + group.num_rows - 1}"
                return f"{episodes}, column {chunk.path_in_schema!r}, {span}: damaged"
        first += group.num_rows
    return "damaged"


def _episode_row(episode: Episode) -> dict[str, Any]:
    task = episode.task
    return {
        **{name: _storable(getattr(episode, name)) for name in _PLAIN},
        **{name: _concatenated(episode.traces, name, dtype) for name, dtype in _ARRAYS.items()},
        "task_key": _storable(task.key),
        "family": _storable(task.family),
        "split": _storable(task.split),
        "status": str(episode.status),
        "task": _dumps(task.to_row()),
        "traces": _dumps([_trace_json(trace) for trace in episode.traces]),
        "rewards": _dumps(episode.rewards),
        "metrics": _dumps(episode.metrics),
        "score": None if episode.score is None else _dumps(asdict(episode.score)),
        "routes": b"".join(np.asarray(t.routes, dtype="<i2").tobytes() for t in episode.traces if t.routes is not None),
    }


def _storable(value: Any) -> Any:
    """Replaces lone surrogates by U+FFFD for a text column; pairs become their character."""
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _concatenated(traces: Iterable[Trace], name: str, dtype: str) -> bytes:
    return b"".join(np.asarray(getattr(trace, name), dtype=dtype).tobytes() for trace in traces)


def _trace_json(trace: Trace) -> dict[str, Any]:
    return {
        **{name: getattr(trace, name) for name in _TRACE_PLAIN},
        "role": str(trace.role),
        "status": str(trace.status),
        "length": {name: len(getattr(trace, name)) for name in _ARRAYS},
        "routes": None if trace.routes is None else list(trace.routes.shape),
        "turns": [_turn_json(turn) for turn in trace.turns],
        **{name: value for name in _TRACE_SELDOM if (value := getattr(trace, name))},
    }


def _turn_json(turn: Turn) -> dict[str, Any]:
    return {
        **{name: getattr(turn, name) for name in _TURN_PLAIN},
        "calls": [[call.id, call.name, call.arguments] for call in turn.calls],
        "results": [result_json(result) for result in turn.results],
        **({"deadline": turn.deadline} if turn.deadline else {}),
    }


def result_json(result: ToolResult) -> list[Any]:
    """A tool's result as JSON: :func:`tool_result`'s arguments."""
    images = [base64.b64encode(image).decode() for image in result.images]
    seldom = [images, True] if result.done else [images] if images else []
    return [result.text, result.error, result.latency_s, *seldom]


def _dumps(value: Any) -> str:
    # ASCII, so that a lone surrogate in an argument survives
    return json.dumps(value, separators=(",", ":"), default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"an episode holds a {type(value).__name__} where only JSON can be stored: {value!r}")


def episode_of(row: dict[str, Any], tasks: dict[str, Task]) -> Episode:
    """The episode of a shard's row; ``tasks`` caches tasks, so that a group shares one."""
    text = row["task"]
    if text not in tasks:
        tasks[text] = Task.from_row(json.loads(text))
    arrays = {name: np.frombuffer(row[name], dtype=dtype) for name, dtype in _ARRAYS.items()}
    arrays["routes"] = np.frombuffer(row["routes"], dtype="<i2")
    told = json.loads(row["traces"])
    check_lengths(told, arrays)
    traces = [_trace(data, arrays) for data in told]
    check_agents(traces, whole=False)
    return Episode(
        **{name: row[name] for name in _PLAIN},
        task=tasks[text],
        status=EpisodeStatus(row["status"]),
        traces=traces,
        rewards=json.loads(row["rewards"]),
        metrics=json.loads(row["metrics"]),
        score=score_of(row.get("score")),
    )


def score_of(text: str | None) -> Score | None:
    """A score from its stored form; ValueError for one that is none."""
    if text is None:
        return None
    try:
        return Score(**json.loads(text))
    except TypeError as error:
        raise ValueError(f"its score is damaged ({error})") from None


def _trace(data: dict[str, Any], arrays: dict[str, np.ndarray]) -> Trace:
    """Rebuild one trace and advance ``arrays`` past its tokens."""
    own = {}
    for name, length in data["length"].items():
        own[name], arrays[name] = arrays[name][:length], arrays[name][length:]
    routes = None
    if data["routes"] is not None:
        size = int(np.prod(data["routes"]))
        routes = arrays["routes"][:size].astype(np.int16).reshape(data["routes"])
        arrays["routes"] = arrays["routes"][size:]
    return Trace(
        **{name: data[name] for name in _TRACE_PLAIN},
        role=Role(data["role"]),
        status=TraceStatus(data["status"]),
        tokens=own["tokens"].tolist(),
        mask=own["mask"].astype(bool).tolist(),
        logprobs=own["logprobs"].tolist(),
        versions=own["versions"].tolist(),
        routes=routes,
        turns=[_turn(turn) for turn in data["turns"]],
        **{name: data[name] for name in _TRACE_SELDOM if name in data},
    )


def _turn(data: dict[str, Any]) -> Turn:
    return Turn(
        **{name: data[name] for name in _TURN_PLAIN},
        calls=[ToolCall(id=i, name=name, arguments=arguments) for i, name, arguments in data["calls"]],
        results=[tool_result(*values) for values in data["results"]],
        deadline=data.get("deadline", ""),
    )


def tool_result(
    text: str, error: str | None, latency_s: float, images: Sequence[str] = (), done: bool = False
) -> ToolResult:
    """A tool's result from its stored form."""
    kind = None if error is None else ErrorKind(error)
    shown = tuple(base64.b64decode(image) for image in images)
    return ToolResult(text=text, error=kind, latency_s=latency_s, images=shown, done=done)
