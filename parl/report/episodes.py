"""Which stored episodes a page shows, and their reading. A damaged shard or episode is a :class:`UserError`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from parl.config.errors import UserError
from parl.report.pack import LIMIT, find_tokenizer, heading, pack
from rollouts.episode import Episode
from rollouts.store.lookup import read_columns, read_episodes, shards
from rollouts.store.store import StoreError

# Kinds of shards in the order in which the page shows them, how it calls them, and how many episodes it takes of each
_KINDS = {
    "trained": ("held-out tasks, trained swarm", 10),
    "train": ("training", 6),
    "single_agent": ("held-out tasks, single agent", 3),
    "cold_start": ("held-out tasks, cold start", 3),
}
_OTHERS = 10
_COLUMNS = ("task_key", "family", "index", "status", "wall_s", "metrics")


@dataclass(slots=True, kw_only=True)
class _Shard:
    """A shard and the row numbers that are taken from it."""

    kind: str
    step: int
    path: Path
    rows: list[int] = field(default_factory=list)

    @property
    def title(self) -> str:
        name, _ = _KINDS.get(self.kind, (self.kind.replace("_", " "), 0))
        return f"{name}, step {self.step}" if self.kind not in _KINDS or self.kind == "train" else name


def load_episodes(source: Path, wanted: Sequence[str], notes: list[str]) -> list[dict[str, Any]]:
    """Packed episodes of a run's folder, a store's folder or one shard: ``wanted`` first, then telling ones.

    ``wanted``: an episode's name (``trained-000000:5``), ``TASK`` (all its episodes) or ``TASK#INDEX``. What does
    not fit the page's size is left out or cut, with a word in ``notes``.
    """
    found = _find(source)
    try:
        asked = [_asked(found, name, source) for name in wanted]
        chosen = [(_Shard(kind=s.kind, step=s.step, path=s.path), rows) for part in asked for s, rows in part]
        chosen += _telling(found)
        return _packed(source, chosen, sum(len(part) for part in asked), notes)
    except StoreError as error:
        raise UserError(str(error)) from None


def _find(source: Path) -> list[_Shard]:
    folders = [source.parent] if source.is_file() else [source, source / "eval", source / "episodes"]
    found = [_Shard(kind=kind, step=step, path=path) for folder in folders for kind, step, path in shards(folder)]
    if source.is_file():
        found = [shard for shard in found if shard.path == source]
        if not found:
            raise UserError(f"{source} is no shard of a store: its name must be KIND-STEP.parquet")
    return found


def _asked(found: list[_Shard], name: str, source: Path) -> list[tuple[_Shard, list[int]]]:
    """Where the episodes called ``name`` are; UserError if nowhere."""
    result, seen = [], []
    for shard in found:
        rows = []
        for number, row in enumerate(read_columns(shard.path, ("task_key", "index"))):
            key, index = row["task_key"], row["index"]
            if name in (key, f"{key}#{index}", _name(shard, number)):
                rows.append(number)
            seen.append(f"{key}#{index}")
        if rows:
            result.append((shard, rows))
    if not result:
        there = f"; there are {len(seen)}, for example {', '.join(dict.fromkeys(seen[:3]))}" if seen else ""
        raise UserError(f"no episode {name!r} in {source}{there}")
    return result


def _name(shard: _Shard, row: int) -> str:
    """An episode's name: shard and row, as in links, on the page, in W&B's tables and for ``parl episodes``."""
    return f"{shard.path.stem}:{row}"


def _telling(found: list[_Shard]) -> list[tuple[_Shard, list[int]]]:
    """Of each kind's last step (and training's first) a few episodes; the baselines show the trained swarm's tasks."""
    kinds = sorted({shard.kind for shard in found}, key=lambda kind: [*_KINDS, kind].index(kind))
    result, tasks = [], []
    for kind in kinds:
        own = [shard for shard in found if shard.kind == kind]
        for shard in {id(s): s for s in (own[-1], own[0])}.values():
            rows = read_columns(shard.path, _COLUMNS)
            count = _KINDS.get(kind, ("", _OTHERS))[1]
            picked = _pick(rows, count)
            if kind == "trained":
                tasks = [rows[number]["task_key"] for number in picked]
            elif kind in ("single_agent", "cold_start") and tasks:
                by_task = {row["task_key"]: number for number, row in enumerate(rows)}
                picked = [by_task[task] for task in tasks if task in by_task][:count]
            result.append((shard, picked))
    return result


def _pick(rows: list[dict[str, Any]], count: int) -> list[int]:
    """Numbers of ``count`` rows: the widest, the slowest by steps and by time, each family's slowest, each bad end."""

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
    return list(dict.fromkeys(order))[:count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An episode of a page: its name in links, where it is from, and itself."""

    name: str
    kind: str
    episode: Episode


def sampled_episodes(source: Path) -> list[Shown]:
    """The telling episodes of a run or store that a page about it shows, in its order. Raises StoreError."""
    return [
        Shown(name=name, kind=shard.title, episode=episode)
        for name, (shard, episode) in _read(_telling(_find(source))).items()
    ]


def _read(chosen: Iterable[tuple[_Shard, list[int]]]) -> dict[str, tuple[_Shard, Episode]]:
    """What was chosen, each once, by its name in links."""
    read: dict[str, tuple[_Shard, Episode]] = {}
    for shard, numbers in chosen:
        for number, episode in zip(numbers, read_episodes(shard.path, numbers), strict=True):
            read.setdefault(_name(shard, number), (shard, episode))
    return read


def _packed(
    source: Path, chosen: Iterable[tuple[_Shard, list[int]]], asked: int, notes: list[str]
) -> list[dict[str, Any]]:
    """Read and pack what was chosen, each at most once, until the page is full."""
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
    """Where a tokenizer may lie: beside the source's policy, or in the cold starts beside the run."""
    folder = source.parent if source.is_file() else source
    runs = [folder, folder.parent]
    cold = [
        path.parent
        for run in (folder.parent, folder.parent.parent)
        for path in sorted(run.glob("cold_start/*/tokenizer.json"))
    ]
    return [*(run / name for run in runs for name in ("", "policy", "single_agent/policy")), *cold]
