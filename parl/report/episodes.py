"""Selects and reads the stored episodes for a page. A damaged shard or episode is a :class:`UserError`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parl.episodes.stores import final_stores
from parl.errors import UserError
from parl.report.pack import LIMIT, find_tokenizer, heading, pack
from rollouts.episode import Episode, EpisodeStatus
from rollouts.store.lookup import read_columns, read_episodes, shards
from rollouts.store.store import StoreError

# Kinds of shards in display order, their titles, and how many episodes of each are shown
_KINDS = {
    "trained": ("held-out tasks, trained swarm", 10),
    "train": ("training", 6),
    "single_agent": ("held-out tasks, single agent", 3),
    "cold_start": ("held-out tasks, cold start", 3),
}
_OTHERS = 10
_COLUMNS = ("task_key", "family", "index", "status", "wall_s", "metrics")
_VOID = (str(EpisodeStatus.FAILED), str(EpisodeStatus.CANCELLED))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    kind: str
    step: int
    path: Path

    @property
    def title(self) -> str:
        name, _ = _KINDS.get(self.kind, (self.kind.replace("_", " "), 0))
        return f"{name}, step {self.step}" if self.kind not in _KINDS or self.kind == "train" else name


_Place = tuple[_Shard, int]  # an episode's shard and row


def load_episodes(source: Path, wanted: Sequence[str], notes: list[str]) -> list[dict[str, Any]]:
    """Packed episodes of a run's folder, a store's folder or one shard: ``wanted`` first, then a selection.

    ``wanted``: an episode's name (``trained-000000:5``), ``TASK`` (all its episodes) or ``TASK#INDEX``. What
    exceeds the page's size is left out or truncated, with a note in ``notes``.
    """
    found = _find(source)
    try:
        chosen = [place for name in wanted for place in _asked(found, name, source)]
        return _packed(source, chosen + _telling(found), notes)
    except StoreError as error:
        raise UserError(str(error)) from None


def _find(source: Path) -> list[_Shard]:
    evaluated = dict.fromkeys(final_stores(source).values())
    folders = [source.parent] if source.is_file() else [source, *evaluated, source / "episodes"]
    found = [_Shard(kind=kind, step=step, path=path) for folder in folders for kind, step, path in shards(folder)]
    if source.is_file():
        found = [shard for shard in found if shard.path == source]
        if not found:
            raise UserError(f"{source} is no shard of a store: its name must be KIND-STEP.parquet")
    return found


def _asked(found: list[_Shard], name: str, source: Path) -> list[_Place]:
    """Locations of the episodes called ``name``; UserError if there are none."""
    result: list[_Place] = []
    seen: list[str] = []
    for shard in found:
        for number, row in enumerate(read_columns(shard.path, ("task_key", "index"))):
            key, index = row["task_key"], row["index"]
            if name in (key, f"{key}#{index}", _name(shard, number)):
                result.append((shard, number))
            seen.append(f"{key}#{index}")
    if not result:
        there = f"; there are {len(seen)}, for example {', '.join(dict.fromkeys(seen[:3]))}" if seen else ""
        raise UserError(f"no episode {name!r} in {source}{there}")
    return result


def _name(shard: _Shard, row: int) -> str:
    """An episode's name: shard and row, as in links, W&B's tables and ``parl episodes``."""
    return f"{shard.path.stem}:{row}"


def _telling(found: list[_Shard]) -> list[_Place]:
    """Some of training's last and first step and of each evaluation, on the same tasks."""
    kinds = sorted({shard.kind for shard in found}, key=lambda kind: [*_KINDS, kind].index(kind))
    result: list[_Place] = []
    tasks: list[str] = []
    for kind in kinds:
        own = [shard for shard in found if shard.kind == kind]
        for part in ([own[-1]], [own[0]]) if kind == "train" else (own,):
            rows = _rows(part)
            count = _KINDS.get(kind, ("", _OTHERS))[1]
            picked = _pick(rows, count)
            if kind == "trained":
                tasks = [row["task_key"] for row in picked]
            elif kind in ("single_agent", "cold_start") and tasks:
                by_task = {row["task_key"]: row for row in rows}
                picked = [by_task[task] for task in tasks if task in by_task][:count]
            result += [row["place"] for row in picked]
    return result


def _rows(part: Sequence[_Shard]) -> list[dict[str, Any]]:
    """The columns of each episode; an evaluation's by task, with the last of repeated attempts."""
    rows: list[dict[str, Any]] = [
        row | {"place": (shard, number)}
        for shard in part
        for number, row in enumerate(read_columns(shard.path, _COLUMNS))
    ]
    if part[0].kind == "train":
        return rows
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        key = (row["task_key"], row["index"])
        if key not in found or row["status"] not in _VOID:
            found[key] = row
    return [found[key] for key in sorted(found)]  # they arrived in any order


def _pick(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """``count`` rows: the widest, the slowest by steps and time, each family's slowest, each failure status."""

    def steps(number: int) -> float:
        return rows[number]["metrics"].get("critical_steps") or 0

    everything = range(len(rows))
    by_width = sorted(everything, key=lambda n: -(rows[n]["metrics"].get("subagents") or 0))
    by_steps = sorted(everything, key=lambda n: -steps(n))
    by_time = sorted(everything, key=lambda n: -rows[n]["wall_s"])
    first: dict[tuple[str, str], int] = {}
    for number in by_steps:
        first.setdefault(("family", rows[number]["family"]), number)
        if rows[number]["status"] != "answered":
            first.setdefault(("status", rows[number]["status"]), number)
    order = [*by_width[:2], *by_steps[:2], *by_time[:2], *first.values(), *by_steps]
    return [rows[number] for number in list(dict.fromkeys(order))[:count]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An episode of a page: its name in links, its source, and the episode."""

    name: str
    kind: str
    episode: Episode


def sampled_episodes(source: Path) -> list[Shown]:
    """The selected episodes of the page of a run or store, in order. Raises StoreError."""
    return [
        Shown(name=name, kind=shard.title, episode=episode)
        for name, (shard, episode) in _read(_telling(_find(source))).items()
    ]


def _read(chosen: Sequence[_Place]) -> dict[str, tuple[_Shard, Episode]]:
    """The chosen episodes, each once, by name in links."""
    numbers: dict[_Shard, list[int]] = {}
    for shard, number in dict.fromkeys(chosen):
        numbers.setdefault(shard, []).append(number)
    read = {
        (shard, number): episode
        for shard, rows in numbers.items()
        for number, episode in zip(rows, read_episodes(shard.path, rows), strict=True)
    }
    found: dict[str, tuple[_Shard, Episode]] = {}
    for shard, number in chosen:
        found.setdefault(_name(shard, number), (shard, read[shard, number]))
    return found


def _packed(source: Path, chosen: Sequence[_Place], notes: list[str]) -> list[dict[str, Any]]:
    """Read and pack the chosen episodes, each at most once, until the page is full."""
    read = _read(chosen)
    episodes = [episode for _, episode in read.values()]
    tokenizer = find_tokenizer(_tokenizer_folders(source), episodes[:8])
    if episodes and tokenizer is None:
        notes.append("No tokenizer.json that fits these episodes was found: tokens are shown by their ids.")
    room, result, dropped = LIMIT, [], 0
    for name, (shard, episode) in read.items():
        packed = pack(episode, tokenizer, room if not result and len(read) == 1 else room // 2)
        if packed is None:
            dropped += 1
            continue
        room -= len(packed[0])
        result.append(heading(episode, *packed, id=name, group=shard.title))
    if dropped:
        notes.append(f"{dropped} episodes did not fit the page; name one with --episode to see it.")
    return result


def _tokenizer_folders(source: Path) -> list[Path]:
    """Possible folders of the tokenizer: with the source's policy, or in cold starts beside the run."""
    folder = source.parent if source.is_file() else source
    runs = [folder, folder.parent]
    cold = [
        path.parent
        for run in (folder.parent, folder.parent.parent)
        for path in sorted(run.glob("cold_start/*/tokenizer.json"))
    ]
    return [*(run / name for run in runs for name in ("", "policy", "single_agent/policy")), *cold]
